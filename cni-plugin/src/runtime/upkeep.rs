//! What a runtime does about a network as a whole: GC, STATUS, and asking whether a list can be run.
//!
//! Source: CNI specification 1.1.0, section 3, "Garbage-collecting a network" and "Validating"; containernetworking/cni, `libcni/api.go`.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::conf::{self, text};
use crate::delegate::{self, invoke};
use crate::env::{Command, ContainerId, Environment};
use crate::error::{Code, Error, Result};
use crate::runtime::conflist::Conflist;
use crate::runtime::{Attachment, Runtime, at_plugin};
use crate::version::SpecVersion;

impl Runtime {
    /// Frees what belongs to none of the attachments in `keep`: DEL for those that are cached, then GC for what a killed ADD or a lost cache left.
    ///
    /// It must not run beside an ADD of the same network, whose attachment is in no list yet. A list with `disableGC` is left alone. Plugins are
    /// asked from version 1.1.0 on, which brought the command.
    ///
    /// # Errors
    ///
    /// The first error, with the others in its details; everything has been tried by then.
    pub fn gc(&self, list: &Conflist, keep: &[conf::Attachment]) -> Result<()> {
        if list.disable_gc {
            return Ok(());
        }
        let mut errors = Vec::new();
        for attachment in self.cache.attachments(&list.name)? {
            if !keep.contains(&attachment.identity())
                && let Err(error) = self.del(list, &attachment)
            {
                let msg = format!(
                    "failed to delete stale attachment {} {}: {}",
                    attachment.container_id, attachment.ifname, error.msg
                );
                errors.push(Error { msg, ..error });
            }
        }
        if list.version >= SpecVersion::V1_1_0 {
            let keep = serde_json::to_value(keep).map_err(|source| Error::decode("list of attachments", &source))?;
            for index in 0..list.plugins.len() {
                errors.extend(
                    self.ask(list, index, Command::Gc, |conf| {
                        // The specification's word, and the one that its first edition had.
                        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                            conf.insert(key.to_owned(), keep.clone());
                        }
                    })
                    .err(),
                );
            }
        }
        together(errors)
    }

    /// Asks every plugin whether an ADD could be served now. Before version 1.1.0 there was no such question, and all is well.
    ///
    /// # Errors
    ///
    /// The first plugin's: code 50 for "not now", code 51 for "and what exists may have lost connectivity".
    pub fn status(&self, list: &Conflist) -> Result<()> {
        if list.version < SpecVersion::V1_1_0 {
            return Ok(());
        }
        (0..list.plugins.len()).try_for_each(|index| self.ask(list, index, Command::Status, |_| ()))
    }

    /// Finds out whether the list can be run: every plugin is there and speaks the list's version. Gives the capabilities that a runtime may use.
    ///
    /// # Errors
    ///
    /// Code 103 for a plugin that is missing, 1 for one that does not speak the version; all of them, as in [`Runtime::gc`].
    pub fn validate(&self, list: &Conflist) -> Result<Vec<String>> {
        let (mut errors, mut capabilities) = (Vec::new(), BTreeSet::new());
        for (index, plugin) in list.plugins.iter().enumerate() {
            let kind = text(plugin, "type")?;
            match delegate::versions(kind, &self.of_no_attachment()) {
                Ok(versions) if versions.iter().any(|version| version == list.version.as_str()) => {}
                Ok(versions) => errors.push(
                    Error::new(
                        Code::IncompatibleVersion,
                        format!("plugin {kind} does not support config version \"{}\"", list.version),
                    )
                    .with_details(format!("it speaks {}", versions.join(", "))),
                ),
                Err(error) => errors.push(at_plugin(list, index, Command::Version, error)),
            }
            let declared = plugin.get("capabilities").and_then(Value::as_object).into_iter().flatten();
            capabilities.extend(declared.filter(|(_, has)| has.as_bool() == Some(true)).map(|(key, _)| key.clone()));
        }
        together(errors).map(|()| capabilities.into_iter().collect())
    }

    fn ask(
        &self,
        list: &Conflist,
        index: usize,
        command: Command,
        complete: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<()> {
        let mut conf = list.plugin_conf(index, &Map::new(), None)?;
        complete(&mut conf);
        invoke(text(&list.plugins[index], "type")?, command, &self.of_no_attachment(), conf)
            .map(|_| ())
            .map_err(|error| at_plugin(list, index, command, error))
    }

    /// The environment of a command that is about no attachment.
    fn of_no_attachment(&self) -> Environment {
        Environment {
            container_id: ContainerId::default(),
            netns: None,
            ifname: None,
            args: String::new(),
            path: self.path.clone(),
            allow_own_netns: false,
        }
    }
}

impl Attachment {
    /// What identifies it in the list of a GC.
    #[must_use]
    pub fn identity(&self) -> conf::Attachment {
        conf::Attachment { container_id: self.container_id.to_string(), ifname: self.ifname.to_string() }
    }
}

/// The first of several errors, the others in its details.
fn together(errors: Vec<Error>) -> Result<()> {
    let mut errors = errors.into_iter();
    let Some(mut first) = errors.next() else { return Ok(()) };
    for error in errors {
        first.details =
            if first.details.is_empty() { error.to_string() } else { format!("{}; {error}", first.details) };
    }
    Err(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_errors_the_first_speaks_and_none_is_lost() {
        assert_eq!(together(Vec::new()), Ok(()));
        let error = together(vec![Error::config("first"), Error::check("second").with_details("why")]).unwrap_err();
        assert_eq!((error.code, error.to_string().as_str()), (Code::InvalidConfig, "first; second; why"));
    }
}
