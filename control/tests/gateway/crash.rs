//! However weir ends, traffic goes on as `fail` says, and what is left is found and removed.
