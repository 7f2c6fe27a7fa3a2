/* Preloaded into the service: makes system calls on the store's files fail with EIO, as the test asks by a shared page. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PWRITE = 1, FDATASYNC, FSYNC, SYNC_FILE_RANGE };

/* call: which of these, 0 for none. file: 0 for "db", 1 for "acknowledged". left: how many are to fail. failed: how many have. */
struct control { _Atomic int call, file, left, failed; };

static struct control *control(void) {
    static struct control *_Atomic mapped;
    struct control *known = mapped;
    const char *path = getenv("DISK_FAULT_CONTROL");
    if (known || !path) return known;
    int fd = open(path, O_RDWR);
    if (fd < 0) return NULL;
    void *page = mmap(NULL, sizeof *known, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : (mapped = page);
}

static int fails(int call, int fd) {
    struct control *asked = control();
    if (!asked || asked->call != call || asked->left <= 0) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    const char *end = asked->file ? "/queue/acknowledged" : "/queue/db";
    size_t tail = strlen(end);
    if ((size_t)length < tail || strcmp(path + length - tail, end)) return 0;
    if (atomic_fetch_sub(&asked->left, 1) <= 0) return 0;
    asked->failed++;
    errno = EIO;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    return fails(PWRITE, fd) ? -1 : REAL(pwrite)(fd, bytes, count, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    return fails(PWRITE, fd) ? -1 : REAL(pwrite64)(fd, bytes, count, at);
}
int fdatasync(int fd) { return fails(FDATASYNC, fd) ? -1 : REAL(fdatasync)(fd); }
int fsync(int fd) { return fails(FSYNC, fd) ? -1 : REAL(fsync)(fd); }
int sync_file_range(int fd, off64_t from, off64_t count, unsigned flags) {
    return fails(SYNC_FILE_RANGE, fd) ? -1 : REAL(sync_file_range)(fd, from, count, flags);
}
