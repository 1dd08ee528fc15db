//! Runs a call of the afxdp crate that may panic, without the panic reaching the operator.
//!
//! `SocketTx::try_send` panics on an errno of its wakeup that it does not know, such as ENXIO after the device was
//! removed. That is an ordinary event for a gateway.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

/// Puts a filter before the panic hook in force: panics inside [`survive`] are not reported. Once per process.
pub(super) fn install() {
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
}

/// What `call` returns; `None` when it panicked. `call` must leave what it borrows usable at any point of a panic.
pub(super) fn survive<T>(call: impl FnOnce() -> T) -> Option<T> {
    QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    QUIET.set(false);
    result.ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn survive_of_a_panic_gives_none() {
        super::install();
        assert_eq!(super::survive(|| 1), Some(1));
        assert_eq!(super::survive(|| -> u8 { panic!("not to be seen") }), None);
    }
}
