//! A part of the gateway that others ask, and that may be taken out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two looks whether the last answer has been given.
const PAUSE: Duration = Duration::from_millis(1);

/// A part that is asked by many, until it is taken out to be stopped: whoever takes it waits for the last answer. Whoever asks while
/// asking already, as for a status of everything, waits for nobody.
#[derive(Debug)]
pub struct Part<T>(Mutex<Option<Arc<T>>>);

/// The part, as long as this lives; none when it was taken out, or there never was one.
#[derive(Debug)]
pub(crate) struct Asked<T>(Option<Arc<T>>);

impl<T> Asked<T> {
    pub fn as_ref(&self) -> Option<&T> {
        self.0.as_deref()
    }
}

impl<T> Part<T> {
    pub fn new(part: Option<T>) -> Self {
        Self(Mutex::new(part.map(Arc::new)))
    }

    pub(crate) fn ask(&self) -> Asked<T> {
        Asked(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub fn put(&self, part: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(part));
    }

    /// Nobody who asks from now on gets it. Not for who has asked and keeps the part meanwhile.
    pub fn take(&self) -> Option<T> {
        let mut part = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        loop {
            match Arc::try_unwrap(part) {
                Ok(part) => return Some(part),
                Err(asked) => part = asked,
            }
            std::thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_asks_twice_while_it_is_taken_waits_for_nobody_and_is_waited_for() {
        let part = Arc::new(Part::new(Some(5)));
        let (tell, told) = channel();
        let (asker, first) = (part.clone(), part.ask());
        std::thread::spawn(move || tell.send(asker.take()));
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "it is asked still");
        let (tell_again, told_again) = channel();
        std::thread::spawn(move || tell_again.send(part.ask().as_ref().copied()));
        let again = told_again.recv_timeout(Duration::from_secs(5));
        assert_eq!((again, first.as_ref()), (Ok(None), Some(&5)));
        drop(first);
        assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(Some(5)));
    }
}
