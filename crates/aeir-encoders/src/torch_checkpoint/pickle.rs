//! The part of Python's pickle format that checkpoints use, as data.
//!
//! A pickle is a program for a small stack machine. This one builds a tree of plain values. Nothing that a pickle names is
//! ever looked up or called: the few functions that rebuild tensors and dictionaries are known here by name and only
//! checked; any other class becomes an [`Node::Object`] that says its name.
//!
//! Values lie in one list and refer to each other by position. A pickle that nests a million tuples, or puts a list into
//! itself, costs no recursion here and leaks nothing.

use std::collections::HashMap;
use std::sync::Arc;

use safetensors::Dtype;

/// More values than a checkpoint of 100,000 tensors has; bounds what a small file can make the program allocate.
const MAX_NODES: usize = 1 << 21;
/// Entries of dictionaries made from one list again and again.
const MAX_COPIED: usize = 1 << 21;
/// What the functions known here take at most.
const MAX_ARGUMENTS: usize = 8;
const MAX_DIMENSIONS: usize = 64;
const MARK: u32 = u32::MAX;

/// Position of a value in [`Pickle::nodes`].
pub(super) type Id = u32;

/// A value of the tree.
#[derive(Debug, Clone)]
pub(super) enum Node {
    None,
    Bool(bool),
    Integer(i64),
    /// An integer beyond 64 bits, little-endian as stored.
    LongInteger(Vec<u8>),
    Float(f64),
    Text(Arc<str>),
    Bytes(usize),
    /// A list, tuple or set.
    Sequence(Vec<Id>),
    Mapping(Vec<(Id, Id)>),
    /// A class or function, by module and name.
    Global(Arc<str>),
    /// What an unknown class would have made.
    Object(Arc<str>),
    Storage(Storage),
    Tensor(Tensor),
}

/// A stretch of numbers that tensors look into.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    /// Name of its bytes in the file.
    pub(super) key: Arc<str>,
    /// None for bytes without a type, which the tensor brings.
    pub(super) dtype: Option<Dtype>,
    /// Number of elements, or of bytes where there is no type.
    pub(super) elements: u64,
    /// Elements to leave out at the start: views of old files.
    pub(super) skipped: u64,
}

/// A tensor that looks into a storage.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) storage: Id,
    pub(super) dtype: Dtype,
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<u64>,
}

/// What stands in the way, and at which byte.
#[derive(Debug)]
pub(super) struct PickleError {
    pub(super) at: usize,
    pub(super) expected: String,
    pub(super) got: String,
}

type Outcome<T> = Result<T, PickleError>;

/// A pickle that was read.
pub(super) struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(super) root: Id,
    /// Bytes it took.
    pub(super) length: usize,
}

impl Pickle {
    /// Reads the pickle at the start of `bytes`.
    pub(super) fn read(bytes: &[u8]) -> Outcome<Self> {
        let mut machine =
            Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), memo: HashMap::new(), copied: 0 };
        loop {
            let start = machine.at;
            let opcode = machine.byte()?;
            if opcode == b'.' {
                let root = machine.pop()?;
                return Ok(Self { nodes: machine.nodes, root, length: machine.at });
            }
            machine.step(opcode).map_err(|mut error| {
                error.at = start;
                error
            })?;
        }
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    memo: HashMap<u32, Id>,
    copied: usize,
}

impl<'a> Machine<'a> {
    fn fail<T>(&self, expected: impl Into<String>, got: impl Into<String>) -> Outcome<T> {
        Err(PickleError { at: self.at, expected: expected.into(), got: got.into() })
    }

    fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        match self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => {
                let left = self.bytes.len().saturating_sub(self.at);
                self.fail(format!("{count} more bytes"), format!("{left}"))
            }
        }
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Outcome<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn short(&mut self) -> Outcome<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn word(&mut self) -> Outcome<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn length(&mut self) -> Outcome<usize> {
        let length = u64::from_le_bytes(self.array()?);
        Ok(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn text(&mut self, length: usize) -> Outcome<Arc<str>> {
        match std::str::from_utf8(self.take(length)?) {
            Ok(text) => Ok(text.into()),
            Err(error) => self.fail("text in UTF-8", error.to_string()),
        }
    }

    fn line(&mut self) -> Outcome<Arc<str>> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(length) => {
                let text = self.text(length)?;
                self.take(1)?;
                Ok(text)
            }
            None => self.fail("a line", "the end of the data"),
        }
    }

    fn push(&mut self, node: Node) -> Outcome<()> {
        if self.nodes.len() >= MAX_NODES {
            return self.fail(format!("at most {MAX_NODES} values"), "more");
        }
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
        Ok(())
    }

    fn pop(&mut self) -> Outcome<Id> {
        match self.stack.pop() {
            Some(id) if id != MARK => Ok(id),
            _ => self.fail("a value on the stack", "none"),
        }
    }

    fn last(&self) -> Outcome<Id> {
        match self.stack.last() {
            Some(id) if *id != MARK => Ok(*id),
            _ => self.fail("a value on the stack", "none"),
        }
    }

    /// Everything above the last mark, and the mark.
    fn marked(&mut self) -> Outcome<Vec<Id>> {
        match self.stack.iter().rposition(|id| *id == MARK) {
            Some(at) => {
                let values = self.stack.split_off(at + 1);
                self.stack.pop();
                Ok(values)
            }
            None => self.fail("a mark on the stack", "none"),
        }
    }

    fn node(&self, id: Id) -> &Node {
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    fn step(&mut self, opcode: u8) -> Outcome<()> {
        match opcode {
            0x80 => self.protocol(),
            0x95 => self.take(8).map(drop), // FRAME: a hint for readers of streams
            b'(' => {
                // Marks cost four bytes each and no value.
                self.stack.push(MARK);
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.marked().map(drop),
            b'2' => {
                let last = self.last()?;
                self.stack.push(last);
                Ok(())
            }
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'J' => {
                let value = self.word()?;
                self.push(Node::Integer(i64::from(value as i32)))
            }
            b'K' => {
                let value = self.byte()?;
                self.push(Node::Integer(i64::from(value)))
            }
            b'M' => {
                let value = self.short()?;
                self.push(Node::Integer(i64::from(value)))
            }
            0x8a => {
                let length = self.byte()?;
                self.long(usize::from(length))
            }
            0x8b => {
                let length = self.word()?;
                self.long(length as usize)
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Node::Float(value))
            }
            b'X' | b'U' | b'T' | 0x8c | 0x8d => self.string(opcode),
            b'B' | b'C' | 0x8e | 0x96 => self.binary(opcode),
            b']' | b')' | 0x8f => self.push(Node::Sequence(Vec::new())),
            b'l' | b't' | 0x91 => {
                let values = self.marked()?;
                self.push(Node::Sequence(values))
            }
            0x85..=0x87 => self.short_tuple(usize::from(opcode - 0x84)),
            b'a' => {
                let value = self.pop()?;
                self.append(&[value])
            }
            b'e' | 0x90 => {
                let values = self.marked()?;
                self.append(&values)
            }
            b'}' => self.push(Node::Mapping(Vec::new())),
            b'd' => {
                let values = self.marked()?;
                self.push(Node::Mapping(Vec::new()))?;
                self.insert(&values)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(&[key, value])
            }
            b'u' => {
                let values = self.marked()?;
                self.insert(&values)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Global(format!("{module}.{name}").into()))
            }
            0x93 => self.stack_global(),
            b'R' | 0x81 => {
                let arguments = self.pop()?;
                let callable = self.pop()?;
                self.rebuild(callable, arguments)
            }
            0x92 => {
                let _named = self.pop()?;
                let arguments = self.pop()?;
                let callable = self.pop()?;
                self.rebuild(callable, arguments)
            }
            // BUILD: attributes of the value below. Of tensors and dictionaries they change nothing that is stored.
            b'b' => {
                self.pop()?;
                self.last().map(drop)
            }
            b'q' => {
                let key = self.byte()?;
                self.remember(u32::from(key))
            }
            b'r' => {
                let key = self.word()?;
                self.remember(key)
            }
            0x94 => self.remember(self.memo.len() as u32),
            b'h' => {
                let key = self.byte()?;
                self.recall(u32::from(key))
            }
            b'j' => {
                let key = self.word()?;
                self.recall(key)
            }
            b'Q' => self.persistent(),
            other => self.fail("an instruction that checkpoints use", format!("{other:#04x}")),
        }
    }

    fn protocol(&mut self) -> Outcome<()> {
        match self.byte()? {
            2..=5 => Ok(()),
            other => self.fail("pickle protocol 2 to 5", other.to_string()),
        }
    }

    fn long(&mut self, length: usize) -> Outcome<()> {
        let bytes = self.take(length)?;
        if length > 8 {
            return self.push(Node::LongInteger(bytes.to_vec()));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide.iter_mut().zip(bytes).for_each(|(wide, byte)| *wide = *byte);
        self.push(Node::Integer(i64::from_le_bytes(wide)))
    }

    fn string(&mut self, opcode: u8) -> Outcome<()> {
        let length = match opcode {
            b'U' | 0x8c => usize::from(self.byte()?),
            0x8d => self.length()?,
            _ => self.word()? as usize,
        };
        // Strings of Python 2 are bytes; those of checkpoints are names.
        let text = self.text(length)?;
        self.push(Node::Text(text))
    }

    fn binary(&mut self, opcode: u8) -> Outcome<()> {
        let length = match opcode {
            b'C' => usize::from(self.byte()?),
            b'B' => self.word()? as usize,
            _ => self.length()?,
        };
        self.take(length)?;
        self.push(Node::Bytes(length))
    }

    fn short_tuple(&mut self, count: usize) -> Outcome<()> {
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(self.pop()?);
        }
        values.reverse();
        self.push(Node::Sequence(values))
    }

    fn append(&mut self, values: &[Id]) -> Outcome<()> {
        let list = self.last()?;
        match self.nodes.get_mut(list as usize) {
            Some(Node::Sequence(items)) => items.extend_from_slice(values),
            Some(Node::Object(_)) => {}
            _ => return self.fail("a list to append to", "another value"),
        }
        Ok(())
    }

    fn insert(&mut self, values: &[Id]) -> Outcome<()> {
        let (pairs, rest) = values.as_chunks::<2>();
        if !rest.is_empty() {
            return self.fail("a key and a value each", "a key alone");
        }
        let dictionary = self.last()?;
        match self.nodes.get_mut(dictionary as usize) {
            Some(Node::Mapping(entries)) => entries.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Some(Node::Object(_)) => {}
            _ => return self.fail("a dictionary to insert into", "another value"),
        }
        Ok(())
    }

    fn stack_global(&mut self) -> Outcome<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (self.node(module), self.node(name)) {
            (Node::Text(module), Node::Text(name)) => {
                let global = Node::Global(format!("{module}.{name}").into());
                self.push(global)
            }
            _ => self.fail("a module and a name", "other values"),
        }
    }

    fn remember(&mut self, key: u32) -> Outcome<()> {
        let last = self.last()?;
        self.memo.insert(key, last);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Outcome<()> {
        match self.memo.get(&key).copied() {
            Some(id) => {
                self.stack.push(id);
                Ok(())
            }
            None => self.fail("a value that was stored", format!("number {key}, which was not")),
        }
    }

    /// `REDUCE`: what calling a function of this name would have made.
    fn rebuild(&mut self, callable: Id, arguments: Id) -> Outcome<()> {
        let name = match self.node(callable) {
            Node::Global(name) => Arc::clone(name),
            Node::Object(name) => return self.push(Node::Object(Arc::clone(name))),
            _ => return self.fail("a class or function to call", "another value"),
        };
        let Node::Sequence(arguments) = self.node(arguments) else {
            return self.fail("a tuple of arguments", "another value");
        };
        let arguments: Vec<Id> = arguments.iter().copied().take(MAX_ARGUMENTS).collect();
        match &*name {
            "collections.OrderedDict" => self.ordered(&arguments),
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => {
                let tensor = self.tensor(&arguments, None)?;
                self.push(tensor)
            }
            "torch._utils._rebuild_tensor_v3" => {
                let dtype = self.dtype_argument(arguments.get(6))?;
                let tensor = self.tensor(&arguments, Some(dtype))?;
                self.push(tensor)
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                match arguments.first().map(|id| (*id, self.node(*id))) {
                    Some((id, Node::Tensor(_))) => {
                        self.stack.push(id);
                        Ok(())
                    }
                    _ => self.fail("a tensor that is a parameter", "another value"),
                }
            }
            "torch.Size" => match arguments.first() {
                Some(size) => {
                    self.stack.push(*size);
                    Ok(())
                }
                None => self.push(Node::Sequence(Vec::new())),
            },
            // Sparse, quantised and other tensors: left out in silence they would be missing from the result.
            other
                if other.starts_with("torch.")
                    && (other.contains("_rebuild") || other.ends_with("Tensor")) =>
            {
                self.fail("a dense tensor (`torch._utils._rebuild_tensor_v2`)", format!("`{other}`"))
            }
            _ => self.push(Node::Object(name)),
        }
    }

    /// Of newer files empty, with items that follow; Python 2 gave a list of pairs.
    fn ordered(&mut self, arguments: &[Id]) -> Outcome<()> {
        let Some(first) = arguments.first() else { return self.push(Node::Mapping(Vec::new())) };
        let Node::Sequence(pairs) = self.node(*first) else {
            return self.fail("a list of keys and values", "another value");
        };
        let copied = self.copied.saturating_add(pairs.len());
        if copied > MAX_COPIED {
            return self.fail(format!("at most {MAX_COPIED} entries"), "more");
        }
        let mut entries = Vec::with_capacity(pairs.len());
        for pair in pairs {
            match self.node(*pair) {
                Node::Sequence(pair) => match pair.as_slice() {
                    [key, value] => entries.push((*key, *value)),
                    _ => return self.fail("a key and a value", format!("{} values", pair.len())),
                },
                _ => return self.fail("a key and a value", "another value"),
            }
        }
        self.copied = copied;
        self.push(Node::Mapping(entries))
    }

    fn tensor(&self, arguments: &[Id], dtype: Option<Dtype>) -> Outcome<Node> {
        let [storage, offset, shape, strides, ..] = arguments else {
            return self.fail("a storage, offset, shape and strides", format!("{} values", arguments.len()));
        };
        let Node::Storage(found) = self.node(*storage) else {
            return self.fail("a storage", "another value");
        };
        let Some(dtype) = dtype.or(found.dtype) else {
            return self.fail("a storage with an element type", "bytes without one");
        };
        let shape = self.sizes(*shape)?;
        let strides = self.sizes(*strides)?;
        if shape.len() != strides.len() {
            return self.fail(format!("{} strides", shape.len()), strides.len().to_string());
        }
        let offset = self.size(*offset)?.saturating_add(found.skipped);
        let shape = shape.into_iter().map(|size| usize::try_from(size).unwrap_or(usize::MAX)).collect();
        Ok(Node::Tensor(Tensor { storage: *storage, dtype, offset, shape, strides }))
    }

    fn sizes(&self, id: Id) -> Outcome<Vec<u64>> {
        match self.node(id) {
            Node::Sequence(values) if values.len() <= MAX_DIMENSIONS => {
                values.iter().map(|value| self.size(*value)).collect()
            }
            Node::Sequence(values) => {
                self.fail(format!("at most {MAX_DIMENSIONS} dimensions"), values.len().to_string())
            }
            _ => self.fail("a tuple of sizes", "another value"),
        }
    }

    fn size(&self, id: Id) -> Outcome<u64> {
        match self.node(id) {
            Node::Integer(value) if *value >= 0 => Ok(value.unsigned_abs()),
            Node::Integer(value) => self.fail("a size of at least 0", value.to_string()),
            _ => self.fail("a size", "another value"),
        }
    }

    fn dtype_argument(&self, id: Option<&Id>) -> Outcome<Dtype> {
        let name = match id.map(|id| self.node(*id)) {
            Some(Node::Global(name)) => name,
            _ => return self.fail("an element type", "another value"),
        };
        match name.strip_prefix("torch.").and_then(dtype_by_name) {
            Some(dtype) => Ok(dtype),
            None => self.fail(ELEMENT_TYPES, format!("`{name}`")),
        }
    }

    /// `('storage', class, key, location, elements)`, and in old files a view.
    fn persistent(&mut self) -> Outcome<()> {
        let id = self.pop()?;
        let Node::Sequence(parts) = self.node(id) else {
            return self.fail("the description of a storage", "another value");
        };
        let kind = match parts.first().map(|id| self.node(*id)) {
            Some(Node::Text(kind)) => kind,
            _ => return self.fail("the description of a storage", "another value"),
        };
        if &**kind == "module" {
            // A whole network pickled with its source text: its class is named in place of it.
            return match parts.get(1).map(|id| self.node(*id).clone()) {
                Some(class @ Node::Global(_)) => self.push(class),
                _ => self.fail("a class", "another value"),
            };
        }
        let [_, class, key, _location, elements, rest @ ..] = parts.as_slice() else {
            return self.fail("five parts of a storage", parts.len().to_string());
        };
        let (Node::Global(class), Node::Text(key)) = (self.node(*class), self.node(*key)) else {
            return self.fail("the class and the key of a storage", "other values");
        };
        let dtype = match &**class {
            "torch.UntypedStorage" | "torch.storage.UntypedStorage" => None,
            name => match storage_dtype(name) {
                Some(dtype) => Some(dtype),
                None => return self.fail(ELEMENT_TYPES, format!("`{name}`")),
            },
        };
        let skipped = match rest.first().map(|id| self.node(*id)) {
            Some(Node::Sequence(view)) => match view.get(1) {
                Some(offset) => self.size(*offset)?,
                None => return self.fail("the offset of a view", "none"),
            },
            _ => 0,
        };
        let storage = Storage { key: Arc::clone(key), dtype, elements: self.size(*elements)?, skipped };
        self.push(Node::Storage(storage))
    }
}

const ELEMENT_TYPES: &str = "an element type of f16, bf16, f32, f64, i8 to i64, u8 to u64, bool or f8 (`torch.FloatStorage` and the like)";

fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class.strip_prefix("torch.")?.strip_suffix("Storage")? {
        "Double" => Dtype::F64,
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::BOOL,
        _ => return None,
    })
}

fn dtype_by_name(name: &str) -> Option<Dtype> {
    Some(match name {
        "float64" => Dtype::F64,
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "int64" => Dtype::I64,
        "int32" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::BOOL,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        _ => return None,
    })
}
