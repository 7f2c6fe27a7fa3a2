//! How much of an answer's stream is taken, and how fast: more than an answer needs costs no more CPU than an answer.

use std::time::Duration;

use tokio::time::Instant;

/// Lines that are read without a pause: an answer of 20,000 tokens, three lines each, that a gateway held back.
const FREE_LINES: u64 = 60_000;

/// Lines read in a second after that: three events for each token of the fastest model.
const LINES_PER_SECOND: u64 = 3_000;

/// Most lines of one call: each of 128,000 tokens, the most that a model gives, as an event, and as many pings.
const MAX_LINES: u64 = 768_000;

/// An event of one token has some 120 bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Shortest pause, so that a slowed stream wakes its reader seldom.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endless;

pub(super) struct Intake {
    began: Instant,
    lines: u64,
    bytes: u64,
}

impl Intake {
    pub(super) fn new() -> Intake {
        Intake { began: Instant::now(), lines: 0, bytes: 0 }
    }

    /// Counts a chunk, of which each is a line at least. Returns until when to leave the next one to the network.
    pub(super) fn add(&mut self, chunk: &[u8]) -> Result<Option<Instant>, Endless> {
        self.lines += 1 + chunk.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u64;
        self.bytes += chunk.len() as u64;
        if self.lines > MAX_LINES || self.bytes > MAX_BYTES {
            return Err(Endless);
        }
        let paid = self.lines.saturating_sub(FREE_LINES);
        let due = self.began + Duration::from_millis(paid * 1_000 / LINES_PER_SECOND);
        let now = Instant::now();
        Ok((due > now).then(|| due.max(now + SHORTEST_PAUSE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_held_back_is_read_at_once_and_an_endless_stream_at_a_bounded_pace() {
        let (mut intake, event) = (Intake::new(), b"event: ping\ndata: {}\n\n");
        for _ in 0..FREE_LINES / 4 {
            assert_eq!(intake.add(event), Ok(None));
        }
        let began = Instant::now();
        let mut count = 0;
        while began.elapsed() < Duration::from_secs(60) {
            if let Some(until) = intake.add(event).unwrap() {
                tokio::time::sleep_until(until).await;
            }
            count += 4;
        }
        assert!((LINES_PER_SECOND * 59..LINES_PER_SECOND * 62).contains(&count), "{count} lines in a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn lines_and_bytes_of_a_call_have_an_end() {
        for chunk in [vec![b'\n'; 1_000], vec![b'x'; 100_000]] {
            let (mut intake, mut taken) = (Intake::new(), 0_u64);
            while intake.add(&chunk).is_ok() {
                taken += chunk.len() as u64;
            }
            assert!((MAX_LINES - 2_000..=MAX_BYTES).contains(&taken), "{taken} bytes");
        }
    }
}
