//! A part of the gateway that others ask, and that may be taken out.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// A part that is asked by many, until it is taken out to be stopped: whoever takes it waits for the last answer.
#[derive(Debug)]
pub struct Part<T>(RwLock<Option<T>>);

impl<T> Part<T> {
    pub fn new(part: Option<T>) -> Self {
        Self(RwLock::new(part))
    }

    pub(crate) fn ask(&self) -> RwLockReadGuard<'_, Option<T>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn put(&self, part: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(part);
    }

    pub fn take(&self) -> Option<T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).take()
    }
}
