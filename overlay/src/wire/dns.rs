//! DNS (RFC 1035, RFC 6891): a checked view of one question, and answers to it.

use super::PacketError;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The port of servers.
pub const PORT: u16 = 53;
/// What every client takes over UDP.
pub const UDP_BYTES_MIN: usize = 512;
/// What is sent over UDP at most, to clients that say that they take it: no path splits it.
pub const UDP_BYTES_MAX: usize = 1232;
/// A message over TCP.
pub const TCP_BYTES_MAX: usize = 16 << 10;

/// What a question asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind(pub u16);

impl Kind {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// The name of an address.
    pub const PTR: Self = Self(12);
    /// An IPv6 address.
    pub const AAAA: Self = Self(28);
    /// All that there is.
    pub const ANY: Self = Self(255);
}

/// How an answer ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Code {
    /// There is such a name.
    NoError = 0,
    /// The question can't be understood.
    FormErr = 1,
    /// There is no such name.
    NxDomain = 3,
    /// This is no question.
    NotImp = 4,
    /// The name is not this server's to know.
    Refused = 5,
}

/// What a name has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A name, in text form.
    Ptr(String),
}

/// A client's question.
#[derive(Clone, Debug)]
pub struct DnsView<'a> {
    header: &'a [u8; HEADER_BYTES],
    question: &'a [u8],
    /// The name in small letters, label by label.
    pub labels: Vec<String>,
    /// What is asked for.
    pub kind: Kind,
    /// What the client takes over UDP, if it says so.
    edns_bytes: Option<u16>,
}

impl<'a> DnsView<'a> {
    /// Reads a question.
    ///
    /// # Errors
    /// `OtherKind` if it is an answer, too short to be answered, or of another class than the Internet's; `Malformed`
    /// if it should be told that it can't be understood: see [`build_error`].
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(PacketError::OtherKind)?;
        if header[2] & RESPONSE != 0 {
            return Err(PacketError::OtherKind);
        }
        let count = |index: usize| u16::from_be_bytes([header[index], header[index + 1]]);
        if header[2] & OPCODE != 0 || count(4) != 1 {
            return Err(PacketError::Malformed);
        }
        let (labels, name_bytes) = read_name(rest)?;
        let question_bytes = name_bytes + 4;
        let question = rest.get(..question_bytes).ok_or(PacketError::Malformed)?;
        let field = |index: usize| u16::from_be_bytes([question[index], question[index + 1]]);
        if !matches!(field(name_bytes + 2), CLASS_INTERNET | CLASS_ANY) {
            return Err(PacketError::Malformed);
        }
        let only_additional = count(6) == 0 && count(8) == 0 && count(10) > 0;
        let edns_bytes = if only_additional { read_edns(&rest[question_bytes..]) } else { None };
        Ok(Self { header, question, labels, kind: Kind(field(name_bytes)), edns_bytes })
    }

    /// How many bytes the client takes over UDP.
    pub fn udp_bytes(&self) -> usize {
        self.edns_bytes.map_or(UDP_BYTES_MIN, |bytes| usize::from(bytes).clamp(UDP_BYTES_MIN, UDP_BYTES_MAX))
    }

    /// The answer, of at most `bytes_max` bytes. What does not fit is left out, and the client told. Without records
    /// the zone's own record says for how long that holds.
    pub fn build_answer(&self, code: Code, zone: &str, records: &[Record], bytes_max: usize) -> Vec<u8> {
        let authoritative = if code == Code::Refused { 0 } else { AUTHORITATIVE };
        let mut answer = vec![self.header[0], self.header[1]];
        answer.push(RESPONSE | authoritative | self.header[2] & RECURSION_DESIRED);
        answer.extend([code as u8, 0, 1, 0, 0, 0, 0, 0, u8::from(self.edns_bytes.is_some())]);
        answer.extend_from_slice(self.question);
        let edns = if self.edns_bytes.is_some() { EDNS_BYTES } else { 0 };
        let mut count: u16 = 0;
        for record in records {
            let before = answer.len();
            push_record(&mut answer, record);
            if answer.len() + edns > bytes_max {
                answer.truncate(before);
                answer[2] |= TRUNCATED;
                break;
            }
            count += 1;
        }
        answer[6..8].copy_from_slice(&count.to_be_bytes());
        if records.is_empty() && authoritative != 0 {
            let before = answer.len();
            push_authority(&mut answer, zone);
            match answer.len() + edns <= bytes_max {
                true => answer[9] = 1,
                false => answer.truncate(before),
            }
        }
        if self.edns_bytes.is_some() {
            let [high, low] = u16::try_from(UDP_BYTES_MAX).expect("it is small").to_be_bytes();
            answer.extend([0, 0, OPT, high, low, 0, 0, 0, 0, 0, 0]);
        }
        answer
    }
}

/// What to tell who sent something that is no question, if anything.
pub fn build_error(bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, _) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    if header[2] & RESPONSE != 0 {
        return None;
    }
    let code = if header[2] & OPCODE != 0 { Code::NotImp } else { Code::FormErr };
    let flags = RESPONSE | header[2] & (OPCODE | RECURSION_DESIRED);
    Some([&[header[0], header[1], flags, code as u8][..], &[0; 8]].concat())
}

/// The labels of a name, and its bytes. Questions have no pointers.
fn read_name(bytes: &[u8]) -> Result<(Vec<String>, usize), PacketError> {
    let (mut labels, mut at) = (Vec::new(), 0);
    loop {
        let length = usize::from(*bytes.get(at).ok_or(PacketError::Malformed)?);
        at += 1;
        if length == 0 {
            return Ok((labels, at));
        }
        if length > LABEL_BYTES_MAX || at + length >= NAME_BYTES_MAX {
            return Err(PacketError::Malformed);
        }
        let label = bytes.get(at..at + length).ok_or(PacketError::Malformed)?;
        labels.push(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect());
        at += length;
    }
}

/// What an OPT record right behind the question says.
fn read_edns(bytes: &[u8]) -> Option<u16> {
    match *bytes {
        [0, 0, OPT, high, low, ..] if bytes.len() >= EDNS_BYTES => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

fn push_record(answer: &mut Vec<u8>, record: &Record) {
    let (kind, data) = match record {
        Record::A(ip) => (Kind::A, ip.octets().to_vec()),
        Record::Aaaa(ip) => (Kind::AAAA, ip.octets().to_vec()),
        Record::Ptr(name) => (Kind::PTR, encode_name(name)),
    };
    // The name is that of the question, which stands behind the header.
    answer.extend_from_slice(&[0xc0, 12]);
    push_body(answer, kind.0, &data);
}

/// The zone's own record, which says how long nothing is to be found (RFC 2308).
fn push_authority(answer: &mut Vec<u8>, zone: &str) {
    answer.extend(encode_name(zone));
    let mut data = encode_name(zone);
    data.extend(encode_name(&format!("nobody.{zone}")));
    for number in [1, 3600, 600, 86400, TTL_S] {
        data.extend_from_slice(&u32::to_be_bytes(number));
    }
    push_body(answer, SOA, &data);
}

fn push_body(answer: &mut Vec<u8>, kind: u16, data: &[u8]) {
    answer.extend_from_slice(&kind.to_be_bytes());
    answer.extend_from_slice(&CLASS_INTERNET.to_be_bytes());
    answer.extend_from_slice(&TTL_S.to_be_bytes());
    answer.extend_from_slice(&u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
    answer.extend_from_slice(data);
}

/// The form of a name in a message. Labels are cut to what fits.
fn encode_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(LABEL_BYTES_MAX)];
        bytes.push(u8::try_from(label.len()).expect("a label is short"));
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes
}

const HEADER_BYTES: usize = 12;
const LABEL_BYTES_MAX: usize = 63;
const NAME_BYTES_MAX: usize = 255;
/// A VM may have moved or got another address: nobody keeps an answer for longer.
const TTL_S: u32 = 5;

const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const CLASS_INTERNET: u16 = 1;
const CLASS_ANY: u16 = 255;
const SOA: u16 = 6;
const OPT: u8 = 41;
const EDNS_BYTES: usize = 11;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A question, with EDNS if a size is given.
    pub(crate) fn question(name: &str, kind: Kind, edns_bytes: Option<u16>) -> Vec<u8> {
        let mut bytes = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns_bytes.is_some())];
        bytes.extend(encode_name(name));
        bytes.extend_from_slice(&kind.0.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        if let Some(size) = edns_bytes {
            let [high, low] = size.to_be_bytes();
            bytes.extend([0, 0, OPT, high, low, 0, 0, 0, 0, 0, 0]);
        }
        bytes
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let bytes = question("Web.BLUE.virtuoso", Kind::A, None);
        let view = DnsView::new_checked(&bytes).unwrap();
        assert_eq!((view.labels.join("."), view.kind), ("web.blue.virtuoso".into(), Kind::A));
        let ip = Ipv4Addr::new(10, 8, 0, 7);
        let answer = view.build_answer(Code::NoError, "virtuoso", &[Record::A(ip)], view.udp_bytes());
        assert_eq!(answer[..12], [7, 9, 0x85, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[12..bytes.len()], bytes[12..]);
        assert_eq!(answer[bytes.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 8, 0, 7]);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_told() {
        let records: Vec<Record> = (0..100).map(|n| Record::A(Ipv4Addr::new(10, 0, 0, n))).collect();
        for (edns, bytes_max, fits) in [(None, 512, 29), (Some(4096), 1232, 74)] {
            let bytes = question("web.blue.virtuoso", Kind::A, edns);
            let view = DnsView::new_checked(&bytes).unwrap();
            let answer = view.build_answer(Code::NoError, "virtuoso", &records, view.udp_bytes());
            assert!(answer.len() <= bytes_max && answer[2] & TRUNCATED != 0);
            assert_eq!(u16::from_be_bytes([answer[6], answer[7]]), fits);
        }
    }

    #[test]
    fn no_question_gets_an_error_and_an_answer_gets_nothing() {
        let mut bytes = question("web", Kind::A, None);
        bytes[5] = 2;
        assert_eq!(DnsView::new_checked(&bytes).err(), Some(PacketError::Malformed));
        assert_eq!(build_error(&bytes).unwrap()[..4], [7, 9, 0x81, 1]);
        bytes[2] |= RESPONSE;
        assert_eq!(DnsView::new_checked(&bytes).err(), Some(PacketError::OtherKind));
        assert_eq!(build_error(&bytes), None);
        let pointer = [&[0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[0xc0, 12, 0, 1, 0, 1]].concat();
        assert_eq!(DnsView::new_checked(&pointer).err(), Some(PacketError::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes: Vec<u8>, plausible: bool) {
            if plausible {
                bytes.splice(0..0, [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
            }
            let _ = build_error(&bytes);
            if let Ok(view) = DnsView::new_checked(&bytes) {
                let answer = view.build_answer(Code::NxDomain, "virtuoso", &[], view.udp_bytes());
                prop_assert!(answer.len() <= UDP_BYTES_MAX);
            }
        }
    }
}
