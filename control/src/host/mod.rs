//! The kernel's side: nft, rules, routes, sysctls, and the routes and neighbours that the fast road uses.
