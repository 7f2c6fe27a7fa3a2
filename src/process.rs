//! What each process has of its own: tasks and random numbers. Tests run several nodes in one process, stop the tasks of one
//! of them, and repeat a run with the same random numbers.

use std::any::Any;

#[cfg(not(test))]
pub use self::real::{random, task};
#[cfg(test)]
pub(crate) use self::simulated::{Node, random, seed, task};

#[cfg(not(test))]
mod real {
    /// Any number with even chances.
    pub fn random() -> u64 {
        rand::random()
    }

    /// A future that runs as a task of this process.
    pub fn task(future: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send + 'static {
        future
    }
}

/// The message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// A random number in 0..1.
pub fn random_unit() -> f64 {
    // 53 bits: as many as an f64 has.
    (random() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod simulated {
    use std::{
        cell::RefCell,
        pin::Pin,
        sync::Arc,
        task::{Context, Poll, Waker},
    };

    use parking_lot::Mutex;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    thread_local! {
        static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
        static CURRENT: RefCell<Option<Node>> = const { RefCell::new(None) };
    }

    pub(crate) fn random() -> u64 {
        SEEDED.with_borrow_mut(|seeded| seeded.as_mut().map_or_else(rand::random, RngExt::random))
    }

    /// From now on, the random numbers of this thread follow from the seed.
    pub(crate) fn seed(seed: u64) {
        SEEDED.set(Some(StdRng::seed_from_u64(seed)));
    }

    /// A task of the node that runs at the moment, if there is one.
    pub(crate) fn task(future: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send + 'static {
        let node = CURRENT.with_borrow(Clone::clone);
        Task { node, future: Some(Box::pin(future)) }
    }

    /// A process among several: its tasks can be paused and killed between any two awaits.
    #[derive(Clone, Default)]
    pub(crate) struct Node(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        is_paused: bool,
        is_dead: bool,
        /// Of tasks that were woken while the node was paused.
        woken: Vec<Waker>,
    }

    impl Node {
        pub(crate) fn pause(&self) {
            self.0.lock().is_paused = true;
        }

        pub(crate) fn go_on(&self) {
            let woken = {
                let mut state = self.0.lock();
                state.is_paused = false;
                std::mem::take(&mut state.woken)
            };
            woken.into_iter().for_each(Waker::wake);
        }

        /// Its tasks run no further, as after SIGKILL.
        pub(crate) fn kill(&self) {
            self.0.lock().is_dead = true;
            self.go_on();
        }

        pub(crate) fn is_paused(&self) -> bool {
            self.0.lock().is_paused
        }

        pub(crate) fn is_dead(&self) -> bool {
            self.0.lock().is_dead
        }

        pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
            tokio::spawn(Task { node: Some(self.clone()), future: Some(Box::pin(future)) });
        }

        /// Makes this the current node while `run` runs.
        fn enter<T>(&self, run: impl FnOnce() -> T) -> T {
            let before = CURRENT.replace(Some(self.clone()));
            let result = run();
            CURRENT.set(before);
            result
        }
    }

    struct Task {
        node: Option<Node>,
        future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    }

    impl Future for Task {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            let node = self.node.clone();
            let Some(future) = &mut self.future else { return Poll::Ready(()) };
            let Some(node) = node else { return future.as_mut().poll(context) };
            {
                let mut state = node.0.lock();
                if state.is_dead {
                    drop(state);
                    node.enter(|| self.future = None);
                    return Poll::Ready(());
                }
                if state.is_paused {
                    state.woken.push(context.waker().clone());
                    return Poll::Pending;
                }
            }
            node.enter(|| future.as_mut().poll(context))
        }
    }

    impl Drop for Task {
        fn drop(&mut self) {
            if let Some(node) = self.node.take() {
                node.enter(|| self.future = None);
            }
        }
    }
}
