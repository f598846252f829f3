//! The zone `virtuoso`: what a question is answered, from what somebody else knows of names.
//!
//! A VM or a host is `NAME` or `NAME.virtuoso`, and `NAME.NETWORK.virtuoso` where it has several networks. Names that
//! are not of the zone are refused, so that a client asks elsewhere.

use crate::wire::PacketError;
use crate::wire::dns::{Code, DnsView, Kind, Record, build_error};
use std::net::{IpAddr, Ipv4Addr};

/// The zone.
pub const ZONE: &str = "virtuoso";

/// Knows names and addresses.
pub trait Directory {
    /// The addresses of a VM or host, in one network or in all; `None` if there is none of that name.
    fn addresses(&self, name: &str, network: Option<&str>) -> Option<Vec<IpAddr>>;
    /// Whether there is a network of that name.
    fn is_network(&self, name: &str) -> bool;
    /// The full name of what has an address.
    fn name_of(&self, ip: Ipv4Addr) -> Named;
}

/// What is known of an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Named {
    /// Its full name.
    Name(String),
    /// It is of a network's subnet, and nothing with a name has it.
    Nobody,
    /// It is of no network.
    Foreign,
}

/// The answer to a question that came by UDP (then `bytes_max` is none) or otherwise. `None` if it deserves none.
pub fn answer(question: &[u8], directory: &impl Directory, bytes_max: Option<usize>) -> Option<Vec<u8>> {
    let view = match DnsView::new_checked(question) {
        Ok(view) => view,
        Err(PacketError::OtherKind) => return None,
        Err(_) => return build_error(question),
    };
    let (code, records) = resolve(&view, directory);
    Some(view.build_answer(code, ZONE, &records, bytes_max.unwrap_or_else(|| view.udp_bytes())))
}

fn resolve(view: &DnsView<'_>, directory: &impl Directory) -> (Code, Vec<Record>) {
    let labels: Vec<&str> = view.labels.iter().map(String::as_str).collect();
    let found = match *labels.as_slice() {
        [ZONE] => return (Code::NoError, Vec::new()),
        // A name alone that nobody has may be anything.
        [name] if !matches!(view.kind, Kind::A | Kind::AAAA) && directory.addresses(name, None).is_none() => {
            return (Code::Refused, Vec::new());
        }
        [name] => directory.addresses(name, None),
        [name, ZONE] => directory.addresses(name, None).or_else(|| directory.is_network(name).then(Vec::new)),
        [name, network, ZONE] => directory.addresses(name, Some(network)),
        [.., ZONE] => None,
        [d, c, b, a, "in-addr", "arpa"] => return reverse(view.kind, [a, b, c, d], directory),
        _ => return (Code::Refused, Vec::new()),
    };
    let Some(addresses) = found else { return (Code::NxDomain, Vec::new()) };
    let wanted = addresses.into_iter().filter_map(|ip| match (ip, view.kind) {
        (IpAddr::V4(ip), Kind::A | Kind::ANY) => Some(Record::A(ip)),
        (IpAddr::V6(ip), Kind::AAAA | Kind::ANY) => Some(Record::Aaaa(ip)),
        _ => None,
    });
    (Code::NoError, wanted.collect())
}

fn reverse(kind: Kind, labels: [&str; 4], directory: &impl Directory) -> (Code, Vec<Record>) {
    let Ok(ip) = labels.join(".").parse::<Ipv4Addr>() else { return (Code::Refused, Vec::new()) };
    match directory.name_of(ip) {
        Named::Name(name) if matches!(kind, Kind::PTR | Kind::ANY) => (Code::NoError, vec![Record::Ptr(name)]),
        Named::Name(_) => (Code::NoError, Vec::new()),
        Named::Nobody => (Code::NxDomain, Vec::new()),
        Named::Foreign => (Code::Refused, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::dns::tests::question;

    /// One VM in one network.
    struct Web;

    impl Directory for Web {
        fn addresses(&self, name: &str, network: Option<&str>) -> Option<Vec<IpAddr>> {
            let known = name == "web" && network.is_none_or(|network| network == "blue");
            known.then(|| vec![Ipv4Addr::new(10, 8, 0, 7).into(), "fd00::7".parse().unwrap()])
        }

        fn is_network(&self, name: &str) -> bool {
            name == "blue"
        }

        fn name_of(&self, ip: Ipv4Addr) -> Named {
            match ip.octets() {
                [10, 8, 0, 7] => Named::Name("web.blue.virtuoso".into()),
                [10, 8, 0, _] => Named::Nobody,
                _ => Named::Foreign,
            }
        }
    }

    #[test]
    fn names_of_the_zone_are_answered_and_others_refused() {
        let cases = [
            ("web", Kind::A, Code::NoError, 1),
            ("web.virtuoso", Kind::AAAA, Code::NoError, 1),
            ("web.blue.virtuoso", Kind::ANY, Code::NoError, 2),
            ("web.blue.virtuoso", Kind(15), Code::NoError, 0),
            ("web.red.virtuoso", Kind::A, Code::NxDomain, 0),
            ("mail", Kind::A, Code::NxDomain, 0),
            ("mail.virtuoso", Kind::A, Code::NxDomain, 0),
            ("blue.virtuoso", Kind::A, Code::NoError, 0),
            ("a.b.c.virtuoso", Kind::A, Code::NxDomain, 0),
            ("virtuoso", Kind(6), Code::NoError, 0),
            ("example.org", Kind::A, Code::Refused, 0),
            ("org", Kind(2), Code::Refused, 0),
            ("7.0.8.10.in-addr.arpa", Kind::PTR, Code::NoError, 1),
            ("8.0.8.10.in-addr.arpa", Kind::PTR, Code::NxDomain, 0),
            ("8.8.8.8.in-addr.arpa", Kind::PTR, Code::Refused, 0),
            ("x.0.8.10.in-addr.arpa", Kind::PTR, Code::Refused, 0),
        ];
        for (name, kind, code, records) in cases {
            let bytes = answer(&question(name, kind, Some(1232)), &Web, None).unwrap();
            assert_eq!((bytes[3], bytes[7]), (code as u8, records), "{name} {kind:?}");
        }
    }

    #[test]
    fn an_answer_gets_no_answer() {
        let mut bytes = question("web", Kind::A, None);
        bytes[2] |= 0x80;
        assert_eq!(answer(&bytes, &Web, None), None);
        assert_eq!(answer(&[1, 2, 3], &Web, None), None);
    }
}
