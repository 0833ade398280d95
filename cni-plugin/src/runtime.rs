//! The other side of the protocol: what a container runtime does with a configuration list.
//!
//! ```text
//!   ADD    plugin 0 ──result──► plugin 1 ──result──► … ──result──► cache, caller
//!   CHECK  plugin 0, plugin 1, …   each with the cached result as prevResult
//!   DEL    …, plugin 1, plugin 0   each with the cached result as prevResult; then the cache entry goes
//!   GC     DEL of cached attachments that are not to be kept; then plugin 0, plugin 1, … with the list of those that are
//! ```
//!
//! This file holds what is about one attachment; [`upkeep`] what is about a network: GC, STATUS, and whether a list can be run at all.
//!
//! Source: CNI specification 1.1.0, section 3, "Execution of Network Configurations".

pub mod cache;
pub mod conflist;
pub mod upkeep;

use std::path::PathBuf;

use linux_net::IfName;
use serde_json::{Map, Value};

use crate::conf::text;
use crate::delegate::{invoke, invoke_add};
use crate::env::{Command, ContainerId, Environment};
use crate::error::{Code, Error, Result};
use crate::result::CniResult;
use crate::runtime::cache::Cache;
use crate::runtime::conflist::Conflist;
use crate::version::SpecVersion;

/// One interface of one container on a network.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The container.
    pub container_id: ContainerId,
    /// Its network namespace; DEL may do without.
    pub netns: Option<PathBuf>,
    /// The interface to make in there.
    pub ifname: IfName,
    /// What becomes `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What becomes `runtimeConfig`, as far as each plugin has the capability.
    pub capability_args: Map<String, Value>,
}

impl Attachment {
    /// The attachment with what ADD was asked for, where the caller of DEL or CHECK does not say it again.
    fn remembering(&self, known: Option<Self>) -> Self {
        let mut attachment = self.clone();
        if let Some(known) = known {
            attachment.netns = attachment.netns.or(known.netns);
            if attachment.args.is_empty() {
                attachment.args = known.args;
            }
            if attachment.capability_args.is_empty() {
                attachment.capability_args = known.capability_args;
            }
        }
        attachment
    }
}

/// A runtime: where the plugins are, and where results are cached.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The directories of `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// The cache.
    pub cache: Cache,
}

impl Runtime {
    /// Attaches a container, and caches and returns the last plugin's result.
    ///
    /// # Errors
    ///
    /// The error of the plugin that failed; everything is then rolled back by DEL, so that nothing half made is left.
    pub fn add(&self, list: &Conflist, attachment: &Attachment) -> Result<CniResult> {
        // A second ADD fails, and what the first one made must stay.
        let is_attached = self.cache.load(list, attachment).is_ok_and(|cached| cached.is_some());
        self.add_all(list, attachment).inspect_err(|_| {
            if !is_attached {
                // The first error is the one to report. DEL is tolerant by specification, whatever ADD has left.
                drop(self.del(list, attachment));
            }
        })
    }

    fn add_all(&self, list: &Conflist, attachment: &Attachment) -> Result<CniResult> {
        let env = self.environment(attachment);
        let mut previous: Option<CniResult> = None;
        for index in 0..list.plugins.len() {
            let conf = list.plugin_conf(index, &attachment.capability_args, previous.as_ref())?;
            let result = invoke_add(text(&list.plugins[index], "type")?, &env, conf);
            previous = Some(result.map_err(|error| at_plugin(list, index, Command::Add, error))?);
        }
        let result = previous.unwrap_or_default();
        self.cache.save(list, attachment, &result)?;
        Ok(result)
    }

    /// Asks every plugin whether the attachment is still what ADD made. A list may forbid it; then all is well.
    ///
    /// # Errors
    ///
    /// Code 1 before 0.4.0, code 3 when nothing is known of the attachment, else the first plugin's complaint.
    pub fn check(&self, list: &Conflist, attachment: &Attachment) -> Result<()> {
        if list.version < SpecVersion::V0_4_0 {
            return Err(Error::new(
                Code::IncompatibleVersion,
                format!("configuration version \"{}\" does not support CHECK; it needs 0.4.0 or newer", list.version),
            ));
        }
        if list.disable_check {
            return Ok(());
        }
        let cached = self.cache.load(list, attachment)?.ok_or_else(|| {
            Error::new(Code::UnknownContainer, format!("failed to get network \"{}\" cached result", list.name))
                .with_details("nothing is known of this container on this network; was it added?")
        })?;
        let attachment = attachment.remembering(cached.attachment);
        for index in 0..list.plugins.len() {
            self.call(list, index, Command::Check, &attachment, cached.result.as_ref())?;
        }
        Ok(())
    }

    /// Detaches a container: every plugin, last one first, even when one of them fails.
    ///
    /// # Errors
    ///
    /// The first error, after all plugins were called; the cache entry then stays, so that DEL can be tried again.
    pub fn del(&self, list: &Conflist, attachment: &Attachment) -> Result<()> {
        // A cache entry that cannot be read must not keep a container attached.
        let (known, result) = match self.cache.load(list, attachment) {
            Ok(Some(cached)) => (cached.attachment, cached.result),
            Ok(None) | Err(_) => (None, None),
        };
        let attachment = &attachment.remembering(known);
        // DEL had no prevResult before 0.4.0.
        let result = result.filter(|_| list.version >= SpecVersion::V0_4_0);
        let mut first_error = None;
        for index in (0..list.plugins.len()).rev() {
            if let Err(error) = self.call(list, index, Command::Del, attachment, result.as_ref()) {
                first_error.get_or_insert(error);
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => self.cache.remove(list, attachment),
        }
    }

    fn call(
        &self,
        list: &Conflist,
        index: usize,
        command: Command,
        attachment: &Attachment,
        previous: Option<&CniResult>,
    ) -> Result<()> {
        let conf = list.plugin_conf(index, &attachment.capability_args, previous)?;
        invoke(text(&list.plugins[index], "type")?, command, &self.environment(attachment), conf)
            .map(|_| ())
            .map_err(|error| at_plugin(list, index, command, error))
    }

    fn environment(&self, attachment: &Attachment) -> Environment {
        let args: Vec<_> = attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        Environment {
            container_id: attachment.container_id.clone(),
            netns: attachment.netns.clone(),
            ifname: Some(attachment.ifname.clone()),
            args: args.join(";"),
            path: self.path.clone(),
            allow_own_netns: false,
        }
    }
}

/// Says which plugin of the list it was; the code stays the plugin's.
fn at_plugin(list: &Conflist, index: usize, command: Command, error: Error) -> Error {
    let kind = text(&list.plugins[index], "type").unwrap_or_default();
    let verb = match command {
        Command::Add => "add",
        Command::Del => "delete",
        Command::Check => "check",
        Command::Gc => "garbage-collect",
        Command::Status => "get the status of",
        Command::Version => "get the version of",
    };
    Error { msg: format!("plugin type=\"{kind}\" failed ({verb}): {}", error.msg), ..error }
}
