//! Whether what a weir was to intercept is dropped now that none runs.

use weir_sys::steering::Maps;

use super::{LinkInfo, nft};

/// As far as can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    Yes,
    No,
    /// This user is not shown what would tell it, or what shows it is missing.
    Unknown,
}

impl Closed {
    /// By the nft table, and by the programs that are on these devices: one that is there for the express lane alone drops nothing.
    pub fn of(links: &[LinkInfo]) -> Self {
        let programs = links.iter().filter_map(|link| link.xdp).map(by_program);
        programs.fold(Self::by_table(), Self::or)
    }

    /// By the table that a weir which fails closed leaves, whatever ended it.
    pub fn by_table() -> Self {
        match nft::read() {
            Ok(Some(table)) if table.is_ours() && table.fails_closed() => Self::Yes,
            Ok(_) => Self::No,
            Err(_) => Self::Unknown,
        }
    }

    const fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::No, Self::No) => Self::No,
            _ => Self::Unknown,
        }
    }
}

fn by_program(id: u32) -> Closed {
    match Maps::of_program(id).and_then(|maps| maps.map(|maps| maps.fails_closed()).transpose()) {
        Ok(Some(true)) => Closed::Yes,
        Ok(_) => Closed::No,
        Err(_) => Closed::Unknown,
    }
}
