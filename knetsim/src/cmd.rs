//! The commands of `knetsim`, a file each.

pub mod apiserver;
pub mod bench;
pub mod doctor;
pub mod down;
pub mod enter;
pub mod init;
pub mod logs;
pub mod objects;
pub mod serve;
pub mod status;
pub mod up;
