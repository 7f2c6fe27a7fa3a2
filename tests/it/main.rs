//! The service as its users meet it: the real binary, real HTTP, real sled on a real disk, and a simulated Claude on a
//! real socket. One file an area; `harness` starts and asks things.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and tell as tests do")]

mod abuse;
mod access;
mod admin;
mod backup;
mod bad_input;
mod batch;
mod cases;
mod cgroup;
mod cluster;
mod cluster_faults;
mod cluster_marks;
mod command_line;
mod crash;
mod database;
mod disk_fault;
mod disk_floor;
mod disk_full;
mod drain;
mod endless;
mod first_start;
mod follow;
mod golden;
mod harness;
mod hold;
mod holds;
mod idempotency;
mod life;
mod limits;
mod load;
mod loadtest;
mod loop_disk;
mod move_data;
mod nodes;
mod operator;
mod pages;
mod power_cut;
mod prompts;
mod proxy;
mod redis_server;
mod salvage;
mod same;
mod sdk;
mod sharing;
mod spend;
mod start;
mod tls;
mod traces;
mod transfer;
mod upstream;
mod warm_up;
mod webhooks;
