//! The messages between the broker and its peers: one packet each, of a fixed form.
//!
//! ```text
//!  version: u8 = 1 | kind: u8 | length: u16 | that many bytes     numbers: little endian
//!  text: length: u8 | that many bytes of UTF-8
//! ```
//!
//! Invariants: decoding reads what the lengths say and no byte more, a packet is decoded whole or not at all, and
//! `decode(encode(x)) == x`.

use std::fmt;

use crate::NamespaceAt;

const VERSION: u8 = 1;
/// The longest packet that there is.
pub(crate) const LONGEST: usize = 512;
/// The most sockets that are asked for at once.
pub(crate) const MOST_SOCKETS: u8 = 32;
const LONGEST_KEY: usize = 64;
/// As the kernel allows names in a directory.
const LONGEST_NAME: usize = 255;
const LONGEST_TEXT: usize = 200;

/// A packet that isn't of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// Of another version.
    #[error("version {0} of the protocol; this is version {VERSION}")]
    Version(u8),
    /// A kind that there isn't.
    #[error("there is no message of kind {0}")]
    Kind(u8),
    /// Shorter than its lengths say, or longer.
    #[error("its length isn't what it says")]
    Length,
    /// A value that can't be.
    #[error("{0} can't be that")]
    Value(&'static str),
}

/// The name of a pod's namespace, which steward and proxy both know: such as the pod's UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// A key of 1 to 64 letters, digits and `-_.:/`; `None` of anything else.
    pub fn new(text: &str) -> Option<Self> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
        let fits = (1..=LONGEST_KEY).contains(&text.len());
        (fits && text.bytes().all(is_allowed)).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address family of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketFamily {
    /// `AF_INET`
    V4,
    /// `AF_INET6`
    V6,
}

/// Asked of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerAsk {
    /// By the steward: a namespace is to be had under this key. A listener of it that an earlier broker made may come
    /// along, which is kept. The listener comes back, which tells the namespace's cookie.
    Enrol {
        /// The key.
        key: Key,
        /// Where the namespace is.
        place: NamespaceAt,
    },
    /// By the steward: the namespace is given up.
    Release(Key),
    /// By a steward that begins: those that are enrolled may be too many.
    Review,
    /// By the steward: those that it hasn't enrolled since then are given up.
    Sweep,
    /// By the proxy: the listener of a namespace.
    Listener(Key),
    /// By the proxy: sockets of a namespace that aren't connected.
    Sockets {
        /// The namespace.
        key: Key,
        /// Their family.
        family: SocketFamily,
        /// How many, 1 to 32.
        count: u8,
    },
}

/// The answer; sockets come along with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// With one socket: the listener of a namespace.
    Listening {
        /// The port at which the listener listens, at each address of the loopback interface.
        port: u16,
    },
    /// With so many sockets.
    Sockets(u8),
    /// Namespaces are given up, or are to be reviewed.
    Released,
    /// It can't be; why.
    Failed(String),
}

impl BrokerAsk {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writing::default();
        let kind = match self {
            Self::Enrol { key, place } => {
                out.text(&key.0);
                match place {
                    NamespaceAt::Name(name) => {
                        out.0.push(1);
                        out.text(name);
                    }
                    NamespaceAt::Process(pid) => {
                        out.0.push(2);
                        out.0.extend(pid.to_le_bytes());
                    }
                    NamespaceAt::Cookie(cookie) => {
                        out.0.push(3);
                        out.0.extend(cookie.to_le_bytes());
                    }
                }
                1
            }
            Self::Release(key) => {
                out.text(&key.0);
                2
            }
            Self::Listener(key) => {
                out.text(&key.0);
                3
            }
            Self::Review => 5,
            Self::Sweep => 6,
            Self::Sockets { key, family, count } => {
                out.text(&key.0);
                out.0.extend([if *family == SocketFamily::V4 { 4 } else { 6 }, *count]);
                4
            }
        };
        out.packet(kind)
    }

    pub(crate) fn decode(packet: &[u8]) -> Result<Self, BadMessage> {
        let (kind, mut from) = Reading::open(packet)?;
        let ask = match kind {
            1 => {
                let key = from.key()?;
                let place = match from.byte()? {
                    1 => NamespaceAt::Name(from.text(LONGEST_NAME)?),
                    2 => NamespaceAt::Process(u32::from_le_bytes(from.bytes()?)),
                    3 => NamespaceAt::Cookie(u64::from_le_bytes(from.bytes()?)),
                    _ => return Err(BadMessage::Value("a place")),
                };
                if !place.can_be() {
                    return Err(BadMessage::Value("a place"));
                }
                Self::Enrol { key, place }
            }
            2 => Self::Release(from.key()?),
            3 => Self::Listener(from.key()?),
            4 => {
                let key = from.key()?;
                let family = match from.byte()? {
                    4 => SocketFamily::V4,
                    6 => SocketFamily::V6,
                    _ => return Err(BadMessage::Value("a family")),
                };
                let count = from.byte()?;
                if !(1..=MOST_SOCKETS).contains(&count) {
                    return Err(BadMessage::Value("a number of sockets"));
                }
                Self::Sockets { key, family, count }
            }
            5 => Self::Review,
            6 => Self::Sweep,
            other => return Err(BadMessage::Kind(other)),
        };
        from.end()?;
        Ok(ask)
    }
}

impl Answered {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writing::default();
        let kind = match self {
            Self::Listening { port } => {
                out.0.extend(port.to_le_bytes());
                129
            }
            Self::Sockets(count) => {
                out.0.push(*count);
                130
            }
            Self::Released => 131,
            Self::Failed(why) => {
                let end = (0..=why.len().min(LONGEST_TEXT)).rev().find(|end| why.is_char_boundary(*end));
                out.text(&why[..end.unwrap_or(0)]);
                132
            }
        };
        out.packet(kind)
    }

    pub(crate) fn decode(packet: &[u8]) -> Result<Self, BadMessage> {
        let (kind, mut from) = Reading::open(packet)?;
        let answer = match kind {
            129 => match u16::from_le_bytes(from.bytes()?) {
                0 => return Err(BadMessage::Value("a port")),
                port => Self::Listening { port },
            },
            130 => match from.byte()? {
                count @ 1..=MOST_SOCKETS => Self::Sockets(count),
                _ => return Err(BadMessage::Value("a number of sockets")),
            },
            131 => Self::Released,
            132 => Self::Failed(from.text(LONGEST_TEXT)?),
            other => return Err(BadMessage::Kind(other)),
        };
        from.end()?;
        Ok(answer)
    }

    /// How many sockets come along.
    pub(crate) fn sockets(&self) -> usize {
        match self {
            Self::Listening { .. } => 1,
            Self::Sockets(count) => usize::from(*count),
            Self::Released | Self::Failed(_) => 0,
        }
    }
}

/// The content of a packet.
#[derive(Default)]
struct Writing(Vec<u8>);

impl Writing {
    /// Of no more than 255 bytes, as all texts are.
    fn text(&mut self, text: &str) {
        let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
        self.0.push(length);
        self.0.extend(&text.as_bytes()[..usize::from(length)]);
    }

    fn packet(self, kind: u8) -> Vec<u8> {
        let length = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        let mut packet = vec![VERSION, kind];
        packet.extend(length.to_le_bytes());
        packet.extend(self.0);
        packet
    }
}

/// The rest of a packet that is being read.
struct Reading<'p>(&'p [u8]);

impl<'p> Reading<'p> {
    /// The kind of a packet, and its content.
    fn open(packet: &'p [u8]) -> Result<(u8, Self), BadMessage> {
        let Some(([version, kind, low, high], content)) = packet.split_first_chunk() else {
            return Err(BadMessage::Length);
        };
        if *version != VERSION {
            return Err(BadMessage::Version(*version));
        }
        if content.len() != usize::from(u16::from_le_bytes([*low, *high])) || packet.len() > LONGEST {
            return Err(BadMessage::Length);
        }
        Ok((*kind, Self(content)))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], BadMessage> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(BadMessage::Length)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn byte(&mut self) -> Result<u8, BadMessage> {
        self.bytes().map(|[byte]| byte)
    }

    fn text(&mut self, longest: usize) -> Result<String, BadMessage> {
        let length = usize::from(self.byte()?);
        let (text, rest) = self.0.split_at_checked(length).ok_or(BadMessage::Length)?;
        self.0 = rest;
        let text = str::from_utf8(text).map_err(|_| BadMessage::Value("a text"))?;
        if text.len() > longest {
            return Err(BadMessage::Value("a text"));
        }
        Ok(text.to_owned())
    }

    fn key(&mut self) -> Result<Key, BadMessage> {
        Key::new(&self.text(LONGEST_KEY)?).ok_or(BadMessage::Value("a key"))
    }

    fn end(self) -> Result<(), BadMessage> {
        if self.0.is_empty() { Ok(()) } else { Err(BadMessage::Length) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn asks() -> impl Strategy<Value = BrokerAsk> {
        let key = || "[a-zA-Z0-9_.:/-]{1,64}".prop_map(|text| Key::new(&text).unwrap());
        let place = prop_oneof![
            "[a-z0-9-]{1,255}".prop_map(NamespaceAt::Name),
            (1..=u32::MAX).prop_map(NamespaceAt::Process),
            (1..=u64::MAX).prop_map(NamespaceAt::Cookie)
        ];
        let family = prop_oneof![Just(SocketFamily::V4), Just(SocketFamily::V6)];
        prop_oneof![
            (key(), place).prop_map(|(key, place)| BrokerAsk::Enrol { key, place }),
            key().prop_map(BrokerAsk::Release),
            Just(BrokerAsk::Review),
            Just(BrokerAsk::Sweep),
            key().prop_map(BrokerAsk::Listener),
            (key(), family, 1..=MOST_SOCKETS).prop_map(|(key, family, count)| BrokerAsk::Sockets {
                key,
                family,
                count
            }),
        ]
    }

    proptest! {
        #[test]
        fn messages_read_back(ask in asks(), port in 1_u16.., count in 1..=MOST_SOCKETS, why in ".{0,300}") {
            let packet = ask.encode();
            prop_assert!(packet.len() <= LONGEST);
            prop_assert_eq!(BrokerAsk::decode(&packet), Ok(ask));
            for end in 0..packet.len() {
                prop_assert!(BrokerAsk::decode(&packet[..end]).is_err());
            }
            for answer in [Answered::Listening { port }, Answered::Sockets(count), Answered::Released] {
                prop_assert_eq!(Answered::decode(&answer.encode()), Ok(answer));
            }
            let Ok(Answered::Failed(text)) = Answered::decode(&Answered::Failed(why.clone()).encode()) else {
                panic!("a failure")
            };
            prop_assert!(why.starts_with(&text) && (text == why || text.len() > LONGEST_TEXT - 4));
        }

        /// Whatever comes is refused, or is what it would be encoded as.
        #[test]
        fn any_bytes_are_decoded_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            kind in 0..8_u8,
        ) {
            let mut framed = vec![VERSION, kind];
            framed.extend(u16::try_from(bytes.len()).unwrap().to_le_bytes());
            framed.extend(&bytes);
            for packet in [&bytes, &framed] {
                if let Ok(ask) = BrokerAsk::decode(packet) {
                    prop_assert_eq!(&ask.encode(), packet);
                }
                if let Ok(answer) = Answered::decode(packet) {
                    prop_assert_eq!(&answer.encode(), packet);
                }
            }
        }
    }

    #[test]
    fn what_can_not_be_is_refused() {
        let ask = |kind: u8, content: &[u8]| {
            let mut packet = vec![VERSION, kind, content.len() as u8, 0];
            packet.extend(content);
            BrokerAsk::decode(&packet)
        };
        assert_eq!(ask(2, b"\x01a"), Ok(BrokerAsk::Release(key("a"))));
        assert_eq!(ask(2, b"\x01a!"), Err(BadMessage::Length));
        assert_eq!(ask(2, b"\x00"), Err(BadMessage::Value("a key")));
        assert_eq!(ask(2, b"\x02a\0"), Err(BadMessage::Value("a key")));
        assert_eq!(ask(4, b"\x01a\x05\x01"), Err(BadMessage::Value("a family")));
        assert_eq!(ask(4, b"\x01a\x04\x00"), Err(BadMessage::Value("a number of sockets")));
        assert_eq!(ask(4, b"\x01a\x04\x21"), Err(BadMessage::Value("a number of sockets")));
        for place in [b"\x01a\x01\x02..".as_slice(), b"\x01a\x01\x03a/b", b"\x01a\x02\0\0\0\0", b"\x01a\x04"]
        {
            assert_eq!(ask(1, place), Err(BadMessage::Value("a place")), "{place:?}");
        }
        assert_eq!(BrokerAsk::decode(&[2, 1, 0, 0]), Err(BadMessage::Version(2)));
        assert_eq!(ask(9, b""), Err(BadMessage::Kind(9)));
    }
}
