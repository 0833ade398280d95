//! libnftnl, owned and with lengths checked: the only place that calls it.
//!
//! libnftnl builds nftables' netlink messages from objects of its own. Each wrapper here owns one such object and
//! frees it; an expression belongs to its rule and an element to its set from the moment it is added.

#![expect(unsafe_code, reason = "libnftnl is a C library")]

use std::{
    ffi::{CStr, CString, c_char, c_void},
    ptr::NonNull,
};

use nftnl_sys as sys;

use crate::error::{Error, Result};

/// Room for one message: a message of elements ends soon after 64 KiB, the most that the attribute
/// around the elements can hold; everything else is far smaller.
const SCRATCH_BYTES: usize = 256 * 1024;

/// Memory in which one message is built.
pub(super) struct Scratch(Vec<u64>);

/// What stands in the header of a message.
#[derive(Clone, Copy)]
pub(super) struct Header {
    /// `NFT_MSG_*`
    pub(super) kind: u16,
    /// `NFPROTO_*`
    pub(super) family: u16,
    /// `NLM_F_*`, beside `NLM_F_REQUEST`
    pub(super) flags: u16,
    pub(super) sequence: u32,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self(vec![0; SCRATCH_BYTES / size_of::<u64>()])
    }

    /// Writes the message that opens a batch.
    pub(super) fn batch_begin(&mut self, sequence: u32, out: &mut Vec<u8>) {
        // SAFETY: the scratch is longer than the 20 bytes of the message, and aligned for it.
        unsafe { sys::nftnl_batch_begin(self.0.as_mut_ptr().cast(), sequence) };
        self.take(out);
    }

    /// Writes the message that commits a batch.
    pub(super) fn batch_end(&mut self, sequence: u32, out: &mut Vec<u8>) {
        // SAFETY: as in batch_begin.
        unsafe { sys::nftnl_batch_end(self.0.as_mut_ptr().cast(), sequence) };
        self.take(out);
    }

    fn begin(&mut self, header: Header) -> *mut libc::nlmsghdr {
        let Header { kind, family, flags, sequence } = header;
        // SAFETY: as in batch_begin.
        unsafe { sys::nftnl_nlmsg_build_hdr(self.0.as_mut_ptr().cast(), kind, family, flags, sequence) }
    }

    /// Appends the message that was built to `out`.
    fn take(&self, out: &mut Vec<u8>) {
        let start = self.0.as_ptr();
        // SAFETY: at the start of the scratch libnftnl has just written a message, whose header tells its length; it is no longer than the
        // scratch, and all bytes of that are initialised.
        let bytes = unsafe {
            let length = (*start.cast::<libc::nlmsghdr>()).nlmsg_len as usize;
            assert!(length <= SCRATCH_BYTES, "libnftnl ends a message of elements at 64 KiB");
            std::slice::from_raw_parts(start.cast::<u8>(), length)
        };
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// Checks that a name can be a string of C.
pub(super) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Invalid {
        what: "nftables name",
        value: text.to_owned(),
        reason: "it contains a zero byte",
    })
}

/// Makes a type that owns an object of libnftnl, with setters by attribute.
macro_rules! owned {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $alloc:ident, $free:ident, $set_u32:ident, $set_u64:ident, $set_str:ident, $set_data:ident, $get_u32:ident, $get_u64:ident, $get_str:ident, $get_data:ident, $is_set:ident) => {
        $(#[$doc])*
        pub(super) struct $name(NonNull<sys::$raw>);

        #[allow(dead_code, reason = "every object has all accessors, and not every one is needed")]
        impl $name {
            pub(super) fn new() -> Self {
                // SAFETY: it takes nothing; it returns null when there is no memory.
                Self(NonNull::new(unsafe { sys::$alloc() }).expect("there is memory for one small object"))
            }

            pub(super) fn set_u32(&mut self, attribute: impl Into<Attribute>, value: u32) -> &mut Self {
                // SAFETY: the object is alive, and it copies the value.
                unsafe { sys::$set_u32(self.0.as_ptr(), attribute.into().0, value) };
                self
            }

            pub(super) fn set_u64(&mut self, attribute: impl Into<Attribute>, value: u64) -> &mut Self {
                // SAFETY: the object is alive, and it copies the value.
                unsafe { sys::$set_u64(self.0.as_ptr(), attribute.into().0, value) };
                self
            }

            pub(super) fn set_str(&mut self, attribute: impl Into<Attribute>, value: &CStr) -> &mut Self {
                // SAFETY: the object is alive, and it copies the string.
                unsafe { sys::$set_str(self.0.as_ptr(), attribute.into().0, value.as_ptr()) };
                self
            }

            pub(super) fn set_data(&mut self, attribute: impl Into<Attribute>, value: &[u8]) -> &mut Self {
                let length = u32::try_from(value.len()).expect("attributes are short");
                // SAFETY: the object is alive, and it copies `length` bytes, which are there.
                unsafe { sys::$set_data(self.0.as_ptr(), attribute.into().0, value.as_ptr().cast(), length) };
                self
            }

            pub(super) fn get_u32(&self, attribute: impl Into<Attribute>) -> Option<u32> {
                let attribute = attribute.into().0;
                // SAFETY: the object is alive; an attribute that is set can be read.
                unsafe { sys::$is_set(self.0.as_ptr(), attribute).then(|| sys::$get_u32(self.0.as_ptr(), attribute)) }
            }

            pub(super) fn get_u64(&self, attribute: impl Into<Attribute>) -> Option<u64> {
                let attribute = attribute.into().0;
                // SAFETY: as in get_u32.
                unsafe { sys::$is_set(self.0.as_ptr(), attribute).then(|| sys::$get_u64(self.0.as_ptr(), attribute)) }
            }

            pub(super) fn get_str(&self, attribute: impl Into<Attribute>) -> Option<String> {
                let attribute = attribute.into().0;
                // SAFETY: as in get_u32; a string that is set ends with a zero and lives as long as the object.
                unsafe {
                    if !sys::$is_set(self.0.as_ptr(), attribute) {
                        return None;
                    }
                    let text: *const c_char = sys::$get_str(self.0.as_ptr(), attribute);
                    (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
                }
            }

            pub(super) fn get_data(&self, attribute: impl Into<Attribute>) -> Option<Vec<u8>> {
                let attribute = attribute.into().0;
                let mut length = 0;
                // SAFETY: as in get_u32; libnftnl says how many bytes there are.
                unsafe {
                    if !sys::$is_set(self.0.as_ptr(), attribute) {
                        return None;
                    }
                    let data: *const c_void = sys::$get_data(self.0.as_ptr(), attribute, &raw mut length);
                    (!data.is_null()).then(|| std::slice::from_raw_parts(data.cast::<u8>(), length as usize).to_vec())
                }
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: nobody else owns the object.
                unsafe { sys::$free(self.0.as_ptr()) };
            }
        }
    };
}

/// The number of an attribute. The constants of libnftnl have several integer types; all of them are small.
pub(super) struct Attribute(u16);

impl From<u32> for Attribute {
    fn from(number: u32) -> Self {
        Self(u16::try_from(number).expect("libnftnl has few attributes"))
    }
}

owned!(
    /// A table.
    TableObject, nftnl_table, nftnl_table_alloc, nftnl_table_free, nftnl_table_set_u32, nftnl_table_set_u64,
    nftnl_table_set_str, nftnl_table_set_data, nftnl_table_get_u32, nftnl_table_get_u64, nftnl_table_get_str,
    nftnl_table_get_data, nftnl_table_is_set
);
owned!(
    /// A chain.
    ChainObject, nftnl_chain, nftnl_chain_alloc, nftnl_chain_free, nftnl_chain_set_u32, nftnl_chain_set_u64,
    nftnl_chain_set_str, nftnl_chain_set_data, nftnl_chain_get_u32, nftnl_chain_get_u64, nftnl_chain_get_str,
    nftnl_chain_get_data, nftnl_chain_is_set
);
owned!(
    /// A rule with its expressions.
    RuleObject, nftnl_rule, nftnl_rule_alloc, nftnl_rule_free, nftnl_rule_set_u32, nftnl_rule_set_u64,
    nftnl_rule_set_str, nftnl_rule_set_data, nftnl_rule_get_u32, nftnl_rule_get_u64, nftnl_rule_get_str,
    nftnl_rule_get_data, nftnl_rule_is_set
);
owned!(
    /// A set with its elements.
    SetObject, nftnl_set, nftnl_set_alloc, nftnl_set_free, nftnl_set_set_u32, nftnl_set_set_u64, nftnl_set_set_str,
    nftnl_set_set_data, nftnl_set_get_u32, nftnl_set_get_u64, nftnl_set_get_str, nftnl_set_get_data, nftnl_set_is_set
);

/// Makes the functions that turn an object into a message and back.
macro_rules! message {
    ($name:ident, $build:ident, $parse:ident) => {
        impl $name {
            pub(super) fn write(&mut self, header: Header, scratch: &mut Scratch, out: &mut Vec<u8>) {
                let message = scratch.begin(header);
                // SAFETY: both are alive, and the scratch has room for far more than one such object.
                unsafe { sys::$build(message, self.0.as_ptr()) };
                scratch.take(out);
            }

            /// Reads one whole message; `None` when it is malformed.
            pub(super) fn parse(message: &[u8]) -> Option<Self> {
                let aligned = aligned(message);
                let object = Self::new();
                // SAFETY: the message is aligned and as long as its header says: the receiver has cut it by that.
                let code = unsafe { sys::$parse(aligned.as_ptr().cast(), object.0.as_ptr()) };
                (code >= 0).then_some(object)
            }
        }
    };
}

message!(TableObject, nftnl_table_nlmsg_build_payload, nftnl_table_nlmsg_parse);
message!(ChainObject, nftnl_chain_nlmsg_build_payload, nftnl_chain_nlmsg_parse);
message!(RuleObject, nftnl_rule_nlmsg_build_payload, nftnl_rule_nlmsg_parse);
message!(SetObject, nftnl_set_nlmsg_build_payload, nftnl_set_nlmsg_parse);

/// Copies a message to where its integers are aligned.
fn aligned(message: &[u8]) -> Vec<u64> {
    let mut words = vec![0u64; message.len().div_ceil(size_of::<u64>())];
    for (word, bytes) in words.iter_mut().zip(message.chunks(size_of::<u64>())) {
        let mut whole = [0; size_of::<u64>()];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
    words
}

/// An expression of a rule, while it is filled in.
pub(super) struct ExprRef<'a> {
    expr: NonNull<sys::nftnl_expr>,
    _rule: &'a mut RuleObject,
}

impl RuleObject {
    /// Appends an expression of the kernel's kind `name`.
    pub(super) fn expr(&mut self, name: &CStr) -> ExprRef<'_> {
        // SAFETY: the name is a string of C. Null means that libnftnl does not know the name, or has no memory.
        let expr = NonNull::new(unsafe { sys::nftnl_expr_alloc(name.as_ptr()) })
            .expect("libnftnl knows every expression that we use");
        // SAFETY: both are alive; the rule owns the expression from here on.
        unsafe { sys::nftnl_rule_add_expr(self.0.as_ptr(), expr.as_ptr()) };
        ExprRef { expr, _rule: self }
    }
}

impl RuleObject {
    /// The chain that the rule jumps or goes to, if it does so without a map, and the constants that it compares with.
    pub(super) fn target_and_constants(&self) -> (Option<String>, Vec<Vec<u8>>) {
        // SAFETY: the rule is alive, and outlives the iterator, which is destroyed below.
        let iterator = NonNull::new(unsafe { sys::nftnl_expr_iter_create(self.0.as_ptr()) })
            .expect("there is memory for an iterator");
        let (mut target, mut constants) = (None, Vec::new());
        // SAFETY: the iterator is alive; null ends it.
        while let Some(expr) = NonNull::new(unsafe { sys::nftnl_expr_iter_next(iterator.as_ptr()) }) {
            // SAFETY: the expression is the rule's; what it returns is a string of its own or null.
            let string = |attribute: u32| unsafe {
                let text = sys::nftnl_expr_get_str(expr.as_ptr(), Attribute::from(attribute).0);
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            };
            match string(sys::NFTNL_EXPR_NAME).as_deref() {
                Some("immediate") => target = target.or_else(|| string(sys::NFTNL_EXPR_IMM_CHAIN)),
                Some("cmp") => {
                    let mut length = 0;
                    // SAFETY: as above; libnftnl says how many bytes there are.
                    constants.extend(unsafe {
                        let attribute = Attribute::from(sys::NFTNL_EXPR_CMP_DATA).0;
                        let data = sys::nftnl_expr_get(expr.as_ptr(), attribute, &raw mut length);
                        (!data.is_null())
                            .then(|| std::slice::from_raw_parts(data.cast::<u8>(), length as usize).to_vec())
                    });
                }
                _ => {}
            }
        }
        // SAFETY: it was created above and is not used any more.
        unsafe { sys::nftnl_expr_iter_destroy(iterator.as_ptr()) };
        (target, constants)
    }
}

impl ExprRef<'_> {
    pub(super) fn u32(&mut self, attribute: impl Into<Attribute>, value: u32) -> &mut Self {
        // SAFETY: the rule, which owns the expression, is borrowed; the value is copied.
        unsafe { sys::nftnl_expr_set_u32(self.expr.as_ptr(), attribute.into().0, value) };
        self
    }

    pub(super) fn u64(&mut self, attribute: impl Into<Attribute>, value: u64) -> &mut Self {
        // SAFETY: as in u32.
        unsafe { sys::nftnl_expr_set_u64(self.expr.as_ptr(), attribute.into().0, value) };
        self
    }

    pub(super) fn u8(&mut self, attribute: impl Into<Attribute>, value: u8) -> &mut Self {
        // SAFETY: as in u32.
        unsafe { sys::nftnl_expr_set_u8(self.expr.as_ptr(), attribute.into().0, value) };
        self
    }

    pub(super) fn str(&mut self, attribute: impl Into<Attribute>, value: &CStr) -> &mut Self {
        // SAFETY: as in u32.
        unsafe { sys::nftnl_expr_set_str(self.expr.as_ptr(), attribute.into().0, value.as_ptr()) };
        self
    }

    pub(super) fn data(&mut self, attribute: impl Into<Attribute>, value: &[u8]) -> &mut Self {
        let length = u32::try_from(value.len()).expect("registers are short");
        // SAFETY: as in u32; `length` bytes are there.
        unsafe { sys::nftnl_expr_set(self.expr.as_ptr(), attribute.into().0, value.as_ptr().cast(), length) };
        self
    }
}

/// An element on its way into a set, or inside one.
pub(super) struct ElementRef(NonNull<sys::nftnl_set_elem>);

impl SetObject {
    /// Appends an element; `fill` sets its attributes.
    pub(super) fn element(&mut self, fill: impl FnOnce(&mut ElementRef)) {
        // SAFETY: it takes nothing; null means that there is no memory.
        let element = NonNull::new(unsafe { sys::nftnl_set_elem_alloc() }).expect("there is memory for an element");
        let mut element = ElementRef(element);
        fill(&mut element);
        // SAFETY: both are alive; the set owns the element from here on.
        unsafe { sys::nftnl_set_elem_add(self.0.as_ptr(), element.0.as_ptr()) };
    }

    /// Writes the elements, as many messages as they need, each with the next sequence number. Without elements it is one
    /// message, which for a deletion means all.
    pub(super) fn write_elements(&mut self, mut header: Header, scratch: &mut Scratch, out: &mut Vec<u8>) -> u32 {
        // SAFETY: the set is alive and outlives the iterator, which is destroyed below.
        let iterator = NonNull::new(unsafe { sys::nftnl_set_elems_iter_create(self.0.as_ptr()) })
            .expect("there is memory for an iterator");
        loop {
            let message = scratch.begin(header);
            // SAFETY: message and iterator are alive. libnftnl ends the message when the attribute around the elements
            // exceeds 64 KiB by one element at most, and the scratch is four times that.
            let more = unsafe { sys::nftnl_set_elems_nlmsg_build_payload_iter(message, iterator.as_ptr()) };
            scratch.take(out);
            header.sequence += 1;
            if more <= 0 {
                break;
            }
        }
        // SAFETY: it is destroyed once.
        unsafe { sys::nftnl_set_elems_iter_destroy(iterator.as_ptr()) };
        header.sequence
    }

    /// Reads the elements of one message and calls `each` with every one.
    pub(super) fn parse_elements(message: &[u8], mut each: impl FnMut(&ElementRef)) -> Option<()> {
        let aligned = aligned(message);
        let set = Self::new();
        // SAFETY: as in parse.
        if unsafe { sys::nftnl_set_elems_nlmsg_parse(aligned.as_ptr().cast(), set.0.as_ptr()) } < 0 {
            return None;
        }
        // SAFETY: the set outlives the iterator, which is destroyed below.
        let iterator = NonNull::new(unsafe { sys::nftnl_set_elems_iter_create(set.0.as_ptr()) })?;
        // SAFETY: the iterator is alive; it returns the elements of the set, then null.
        while let Some(element) = NonNull::new(unsafe { sys::nftnl_set_elems_iter_next(iterator.as_ptr()) }) {
            each(&ElementRef(element));
        }
        // SAFETY: it is destroyed once.
        unsafe { sys::nftnl_set_elems_iter_destroy(iterator.as_ptr()) };
        Some(())
    }
}

impl ElementRef {
    pub(super) fn set_u32(&mut self, attribute: impl Into<Attribute>, value: u32) -> &mut Self {
        // SAFETY: an element is alive as long as this reference, which never leaves the closure that it is lent to.
        unsafe { sys::nftnl_set_elem_set_u32(self.0.as_ptr(), attribute.into().0, value) };
        self
    }

    pub(super) fn set_u64(&mut self, attribute: impl Into<Attribute>, value: u64) -> &mut Self {
        // SAFETY: as in set_u32.
        unsafe { sys::nftnl_set_elem_set_u64(self.0.as_ptr(), attribute.into().0, value) };
        self
    }

    pub(super) fn set_str(&mut self, attribute: impl Into<Attribute>, value: &CStr) -> &mut Self {
        // SAFETY: as in set_u32; the string is copied.
        unsafe { sys::nftnl_set_elem_set_str(self.0.as_ptr(), attribute.into().0, value.as_ptr()) };
        self
    }

    pub(super) fn set_data(&mut self, attribute: impl Into<Attribute>, value: &[u8]) -> &mut Self {
        let length = u32::try_from(value.len()).expect("keys are short");
        // SAFETY: as in set_u32; `length` bytes are there and are copied.
        unsafe { sys::nftnl_set_elem_set(self.0.as_ptr(), attribute.into().0, value.as_ptr().cast(), length) };
        self
    }

    pub(super) fn get_u32(&self, attribute: impl Into<Attribute>) -> Option<u32> {
        let attribute = attribute.into().0;
        // SAFETY: as in set_u32; an attribute that is set can be read.
        unsafe {
            sys::nftnl_set_elem_is_set(self.0.as_ptr(), attribute)
                .then(|| sys::nftnl_set_elem_get_u32(self.0.as_ptr(), attribute))
        }
    }

    pub(super) fn get_u64(&self, attribute: impl Into<Attribute>) -> Option<u64> {
        let attribute = attribute.into().0;
        // SAFETY: as in get_u32.
        unsafe {
            sys::nftnl_set_elem_is_set(self.0.as_ptr(), attribute)
                .then(|| sys::nftnl_set_elem_get_u64(self.0.as_ptr(), attribute))
        }
    }

    pub(super) fn get_str(&self, attribute: impl Into<Attribute>) -> Option<String> {
        let attribute = attribute.into().0;
        // SAFETY: as in get_u32; a string that is set ends with a zero and lives as long as the element.
        unsafe {
            if !sys::nftnl_set_elem_is_set(self.0.as_ptr(), attribute) {
                return None;
            }
            let text = sys::nftnl_set_elem_get_str(self.0.as_ptr(), attribute);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }

    pub(super) fn get_data(&self, attribute: impl Into<Attribute>) -> Option<Vec<u8>> {
        let attribute = attribute.into().0;
        let mut length = 0;
        // SAFETY: as in get_u32; libnftnl says how many bytes there are.
        unsafe {
            if !sys::nftnl_set_elem_is_set(self.0.as_ptr(), attribute) {
                return None;
            }
            let data = sys::nftnl_set_elem_get(self.0.as_ptr(), attribute, &raw mut length);
            (!data.is_null()).then(|| std::slice::from_raw_parts(data.cast::<u8>(), length as usize).to_vec())
        }
    }
}
