//! The CNI plugins in one multi-call binary, and the runtime side that calls them
