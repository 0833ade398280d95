//! Sentences that no command asked for, such as the death of a daemon: where they go depends on whether somebody types.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

type Sink = Box<dyn FnMut(&str) + Send>;

/// Passes sentences on to the prompt while there is one, else to standard error. Clones share the sink.
#[derive(Clone, Default)]
pub struct Announcer {
    sink: Arc<Mutex<Option<Sink>>>,
}

impl Announcer {
    /// Says a sentence.
    pub fn say(&self, text: &str) {
        let mut sink = self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match sink.as_mut() {
            Some(sink) => sink(&format!("*** {text}")),
            // Nobody can be told that standard error is closed.
            None => drop(writeln!(std::io::stderr(), "*** {text}")),
        }
    }

    /// From now on sentences go to `sink`.
    pub fn set(&self, sink: impl FnMut(&str) + Send + 'static) {
        *self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Box::new(sink));
    }

    /// From now on sentences go to standard error again.
    pub fn reset(&self) {
        *self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }
}
