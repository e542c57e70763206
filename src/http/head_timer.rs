//! The timer behind a connection's head timeout: one alarm that is put off when it rings, rather than set and unset for each request.
//!
//! hyper makes a sleep before each head and drops it when the head is there. Each would enter the runtime's timers and leave them
//! again, under a lock that all connections share; here they share their connection's alarm, which may ring too early and is then
//! set to when it is due.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// The timer of one connection.
#[derive(Default)]
pub(super) struct HeadTimer(Arc<Mutex<Alarm>>);

/// What is set; nothing before the first wait.
#[derive(Default)]
struct Alarm(Option<Pin<Box<tokio::time::Sleep>>>);

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, due: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Wait { alarm: Arc::clone(&self.0), due: due.into() })
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

/// One wait for a head.
struct Wait {
    alarm: Arc<Mutex<Alarm>>,
    due: tokio::time::Instant,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Whatever a panic left is an alarm that rings or one that does not, and both are looked at here.
        self.alarm.lock().unwrap_or_else(PoisonError::into_inner).poll(self.due, cx)
    }
}

impl Sleep for Wait {}

impl Alarm {
    fn poll(&mut self, due: tokio::time::Instant, cx: &mut Context<'_>) -> Poll<()> {
        let alarm = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if alarm.deadline() > due {
            alarm.as_mut().reset(due);
        }
        while alarm.deadline() < due {
            // It was set for a head that has come since.
            ready!(alarm.as_mut().poll(cx));
            alarm.as_mut().reset(due);
        }
        alarm.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_follows_others_ends_when_it_is_due_and_no_sooner() {
        let timer = HeadTimer::default();
        for pause in [0, 3, 9, 4] {
            let wait = timer.sleep(PATIENCE);
            let early = tokio::time::timeout(Duration::from_secs(pause), wait).await;
            assert!(early.is_err(), "a head that comes after {pause} s comes in time");
        }
        let began = timer.now();
        timer.sleep(PATIENCE).await;
        assert_eq!(timer.now().duration_since(began).as_secs(), PATIENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_wait_is_not_held_up_by_a_longer_one_before_it() {
        let timer = HeadTimer::default();
        assert!(tokio::time::timeout(Duration::ZERO, timer.sleep(PATIENCE)).await.is_err());
        let began = timer.now();
        timer.sleep(Duration::from_secs(1)).await;
        assert_eq!(timer.now().duration_since(began).as_secs(), 1);
    }
}
