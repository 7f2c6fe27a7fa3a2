//! One bound on the memory that request bodies and answers hold, for all clients together and for each address.
//!
//! A body of known length holds its memory from before its first byte is read, a chunked one from when its bytes arrive, both
//! until the request is answered; an answer holds memory until it is written. A request that finds no room is answered
//! `503` and can be sent again.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    task::{self, JoinError},
};
use tracing::error;

use super::problem::{INTERNAL, Problem, SERVER_BUSY};

/// The first bytes of a body or an answer are free: connections have buffers of this size anyway, and most requests
/// need no more.
const FREE_BYTES: usize = 16 << 10;

/// A body above this size may not use the last quarter of the budget, which is for the small requests of others.
const SMALL_BODY_BYTES: usize = 256 << 10;

/// Most bytes of a refused body that are read and dropped, so that its sender gets to read the refusal. Connections are
/// reset if they are closed with bytes unread.
const DRAINED_BYTES: usize = 8 << 20;

/// Most bytes of an answer that are passed to the connection at once.
const SLICE_BYTES: usize = 64 << 10;

const LISTS_AT_ONCE: usize = 2;

const BUSY_RETRY_AFTER: u64 = 2;

/// Marks the requests of a connection that may only ask for health and metrics, because there are too many others.
#[derive(Clone, Copy, Debug)]
pub struct MonitoringOnly;

#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    bytes: usize,
    /// Lists that are made at the same time. Each reads up to 4 MiB from disk, and is as large again as JSON.
    lists: Arc<Semaphore>,
    held: Mutex<Shares>,
}

/// What is used of something bounded, in all and by address.
#[derive(Debug, Default)]
pub struct Shares {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Shares {
    /// Takes `count` for an address if neither all of them nor the address exceed their bounds then.
    pub fn take(&mut self, address: IpAddr, count: usize, most: usize, most_per_address: usize) -> bool {
        let of_address = self.by_address.get(&address).copied().unwrap_or_default();
        if self.total + count > most || of_address + count > most_per_address {
            return false;
        }
        self.total += count;
        self.by_address.insert(address, of_address + count);
        true
    }

    #[cfg(test)]
    pub(crate) fn is_unused(&self) -> bool {
        self.total == 0 && self.by_address.is_empty()
    }

    /// Gives back what was taken. Addresses with nothing left are forgotten.
    pub fn give_back(&mut self, address: IpAddr, count: usize) {
        self.total -= count;
        if let Some(of_address) = self.by_address.get_mut(&address) {
            *of_address -= count;
            if *of_address == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

impl MemoryBudget {
    pub fn new(bytes: usize) -> MemoryBudget {
        MemoryBudget(Arc::new(Budget { bytes, lists: Arc::new(Semaphore::new(LISTS_AT_ONCE)), held: Mutex::default() }))
    }

    /// Makes a list once there is room for it: reads the page, and then makes the answer of it on a thread where that
    /// delays no other request. If the client leaves, both go on to their end, so that their memory stays counted.
    pub(super) async fn list<P: Send + 'static, A: Send + 'static>(
        &self,
        read: impl Future<Output = Result<P, Problem>> + Send + 'static,
        make: impl FnOnce(P) -> A + Send + 'static,
    ) -> Result<A, Problem> {
        let failed = |error: JoinError| {
            error!(%error, "failed to make a list");
            Problem::new(INTERNAL, "internal error")
        };
        let place = Arc::clone(&self.0.lists).acquire_owned().await;
        let made = tokio::spawn(async move {
            let _place = place;
            let page = read.await?;
            task::spawn_blocking(move || make(page)).await.map_err(failed)
        });
        made.await.map_err(failed)?
    }

    fn hold(&self, address: IpAddr) -> Arc<Hold> {
        Arc::new(Hold {
            budget: Arc::clone(&self.0),
            address,
            bytes: AtomicUsize::new(0),
            is_refused: AtomicBool::new(false),
        })
    }
}

/// The part of the budget that one body or answer holds until it is dropped.
struct Hold {
    budget: Arc<Budget>,
    address: IpAddr,
    bytes: AtomicUsize,
    is_refused: AtomicBool,
}

impl Hold {
    /// Holds `more` bytes if there is room. One address may hold half of the budget.
    fn grow(&self, more: usize) -> bool {
        let Budget { bytes, held, .. } = &*self.budget;
        let before = self.bytes.load(Ordering::Relaxed);
        let most = if before + more > SMALL_BODY_BYTES { bytes - bytes / 4 } else { *bytes };
        let is_taken = held.lock().take(self.address, more, most, bytes / 2);
        if is_taken {
            self.bytes.store(before + more, Ordering::Relaxed);
        } else {
            self.is_refused.store(true, Ordering::Relaxed);
        }
        is_taken
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.budget.held.lock().give_back(self.address, bytes);
        }
    }
}

pub(super) async fn counted(memory: &MemoryBudget, address: IpAddr, request: Request, next: Next) -> Response {
    // A stream has no exact size.
    let is_small = |hint: SizeHint| hint.exact().is_some_and(|bytes| bytes <= FREE_BYTES as u64);
    let answer = if is_small(request.body().size_hint()) {
        next.run(request).await
    } else {
        let hold = memory.hold(address);
        let waits = request.headers().contains_key(header::EXPECT);
        let request = request.map(|body| Body::new(Arriving::new(body, Arc::clone(&hold), waits)));
        let answer = next.run(request).await;
        // One that is too large in any case is not worth another try.
        if hold.is_refused.load(Ordering::Relaxed) && answer.status() != StatusCode::PAYLOAD_TOO_LARGE {
            return busy("has no memory for this body; send it again soon");
        }
        answer
    };
    let Some(bytes) = answer.body().size_hint().exact().filter(|bytes| *bytes > FREE_BYTES as u64) else {
        return answer;
    };
    let hold = memory.hold(address);
    if !hold.grow(usize::try_from(bytes).unwrap_or(usize::MAX)) {
        return busy("has no memory for an answer of this size; ask for a shorter page, or again soon");
    }
    answer.map(|body| Body::new(Leaving { body, bytes: Bytes::new(), left: bytes, _hold: hold }))
}

pub(super) fn busy(why: &str) -> Response {
    Problem::new(SERVER_BUSY, format!("the service {why}")).retry_after(BUSY_RETRY_AFTER).into_response()
}

/// The body of a request, counted as it arrives.
struct Arriving {
    body: Body,
    /// The length that the client announced, until its memory is held.
    announced: Option<usize>,
    free: usize,
    /// How many more bytes are read and dropped once there is no memory: none if the client waits for `100 Continue`.
    drained: usize,
    hold: Arc<Hold>,
}

impl Arriving {
    fn new(body: Body, hold: Arc<Hold>, waits: bool) -> Arriving {
        let announced = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
        Arriving { body, announced, free: FREE_BYTES, drained: if waits { 0 } else { DRAINED_BYTES }, hold }
    }

    /// Holds memory for more bytes. Those that are free are used up first.
    fn hold(&mut self, bytes: usize) {
        let counted = bytes.saturating_sub(self.free);
        self.free -= bytes - counted;
        if counted > 0 {
            self.hold.grow(counted);
        }
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(announced) = self.announced.take() {
            self.hold(announced);
            self.free += announced;
        }
        loop {
            if self.hold.is_refused.load(Ordering::Relaxed) && self.drained == 0 {
                return Poll::Ready(Some(Err(axum::Error::new("no memory"))));
            }
            let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
            let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            if !self.hold.is_refused.load(Ordering::Relaxed) {
                self.hold(bytes);
            }
            if !self.hold.is_refused.load(Ordering::Relaxed) {
                return Poll::Ready(frame);
            }
            self.drained = if frame.is_some() { self.drained.saturating_sub(bytes) } else { 0 };
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, which holds its memory until the last piece of it is passed on.
struct Leaving {
    body: Body,
    bytes: Bytes,
    left: u64,
    _hold: Arc<Hold>,
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.bytes.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.bytes = bytes,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let size = self.bytes.len().min(SLICE_BYTES);
        let slice = self.bytes.split_to(size);
        self.left -= size as u64;
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn one_address_may_hold_half_of_the_budget_and_large_bodies_leave_a_quarter() {
        let budget = MemoryBudget::new(8 * MIB);
        let [a, b] = [budget.hold(address(1)), budget.hold(address(2))];
        assert!(a.grow(4 * MIB) && !a.grow(1));
        assert!(b.grow(2 * MIB) && !b.grow(MIB), "of eight, two are for small bodies");
        let small: Vec<_> = (3..=10).map(|n| budget.hold(address(n))).collect();
        assert!(small.iter().all(|hold| hold.grow(SMALL_BODY_BYTES)));
        assert!(!budget.hold(address(11)).grow(1), "all is held");
        drop((a, b, small));
        assert!(budget.0.held.lock().is_unused());
    }

    #[tokio::test]
    async fn an_answer_holds_its_memory_until_its_last_piece() {
        let budget = MemoryBudget::new(MIB);
        let hold = budget.hold(address(1));
        assert!(hold.grow(3 * SLICE_BYTES));
        let body = Body::from(vec![7; 3 * SLICE_BYTES]);
        let mut leaving = Leaving { body, bytes: Bytes::new(), left: 3 * SLICE_BYTES as u64, _hold: hold };
        for n in (0..3).rev() {
            assert!(!leaving.is_end_stream() && budget.0.held.lock().total > 0);
            let frame = std::future::poll_fn(|context| Pin::new(&mut leaving).poll_frame(context)).await;
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), vec![7; SLICE_BYTES]);
            assert_eq!(leaving.size_hint().exact(), Some((n * SLICE_BYTES) as u64));
        }
        assert!(leaving.is_end_stream());
        drop(leaving);
        assert_eq!(budget.0.held.lock().total, 0);
    }
}
