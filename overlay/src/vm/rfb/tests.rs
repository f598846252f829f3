//! Both sides against each other, and followers against a decoder that has all of what was said before it.

use super::*;
use proptest::prelude::*;

const FORMAT: PixelFormat = PixelFormat([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);

fn init(size: (u16, u16)) -> ServerInit {
    ServerInit { size, format: FORMAT, name: b"QEMU (one)".to_vec() }
}

/// A rectangle's head.
fn head(width: u16, height: u16, encoding: i32) -> Vec<u8> {
    let sizes = [7, 9, width, height].map(u16::to_be_bytes).concat();
    [&sizes[..], &encoding.to_be_bytes()].concat()
}

fn bytes(count: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), count)
}

/// A tile of so many pixels, each of four bytes.
fn tile(pixels: usize) -> impl Strategy<Value = Vec<u8>> {
    let plain = (any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(0u8..5));
    let plain = plain.prop_flat_map(|(background, foreground, is_coloured, parts)| {
        let colours = 4 * (usize::from(background) + usize::from(foreground));
        let says = u8::from(background) * 2 + u8::from(foreground) * 4 + u8::from(is_coloured) * 16;
        let says = says + if parts.is_some() { 8 } else { 0 };
        let part = if is_coloured { 6 } else { 2 };
        let rest = bytes(parts.map_or(0, |count| usize::from(count) * part));
        (bytes(colours), rest).prop_map(move |(colours, rest)| {
            let count: Vec<u8> = parts.into_iter().collect();
            [vec![says], colours, count, rest].concat()
        })
    });
    prop_oneof![plain, bytes(4 * pixels).prop_map(|pixels| [vec![1], pixels].concat())]
}

fn hextile() -> impl Strategy<Value = Vec<u8>> {
    (0u16..40, 0u16..40).prop_flat_map(|(width, height)| {
        let sides = |length: u16| (0..length).step_by(16).map(move |at| usize::from(16.min(length - at)));
        let tiles: Vec<_> =
            sides(height).flat_map(|down| sides(width).map(move |across| tile(down * across))).collect();
        tiles.prop_map(move |tiles| [head(width, height, HEXTILE), tiles.concat()].concat())
    })
}

fn rect() -> impl Strategy<Value = Vec<u8>> {
    let of = |encoding: i32, sizes: std::ops::Range<u16>, count: fn(usize, usize) -> usize| {
        (sizes.clone(), sizes).prop_flat_map(move |(width, height)| {
            let rest = bytes(count(width.into(), height.into()));
            rest.prop_map(move |rest| [head(width, height, encoding), rest].concat())
        })
    };
    let rre = (0u32..5).prop_flat_map(|parts| {
        let rest = bytes(4 + parts as usize * 12);
        rest.prop_map(move |rest| [head(30, 20, RRE), parts.to_be_bytes().to_vec(), rest].concat())
    });
    prop_oneof![
        of(RAW, 0..12, |width, height| width * height * 4),
        of(COPY_RECT, 0..12, |_, _| 4),
        of(DESKTOP_SIZE, 0..3000, |_, _| 0),
        of(CURSOR, 0..20, |width, height| width * height * 4 + width.div_ceil(8) * height),
        of(POINTER_TYPE, 0..2, |_, _| 0),
        of(EXTENDED_KEY, 0..2, |_, _| 0),
        rre,
        hextile(),
    ]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let update = prop::collection::vec(rect(), 0..5).prop_map(|rects| {
        let count = u16::try_from(rects.len()).unwrap().to_be_bytes();
        [vec![UPDATE, 0, count[0], count[1]], rects.concat()].concat()
    });
    let colours = (0u16..9).prop_flat_map(|count| {
        let rest = bytes(usize::from(count) * 6);
        rest.prop_map(move |rest| [vec![COLOURS, 0, 0, 1], count.to_be_bytes().to_vec(), rest].concat())
    });
    let text = prop::collection::vec(any::<u8>(), 0..40).prop_map(|text| {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        [vec![CUT, 0, 0, 0], length.to_vec(), text].concat()
    });
    prop_oneof![4 => update, 1 => colours, 1 => Just(vec![BELL]), 1 => text]
}

const UPDATE: u8 = 0;
const COLOURS: u8 = 1;
const BELL: u8 = 2;
const CUT: u8 = 3;

/// The rest behind one whole message of a server with pixels of four bytes.
fn behind(said: &[u8]) -> Option<&[u8]> {
    let number = |at: usize, length: usize| {
        let bytes = said.get(at..at + length)?;
        Some(bytes.iter().fold(0, |number: usize, byte| number * 256 + usize::from(*byte)))
    };
    match *said.first()? {
        BELL => said.get(1..),
        COLOURS => said.get(6 + 6 * number(4, 2)?..),
        CUT => said.get(8 + number(4, 4)?..),
        UPDATE => (0..number(2, 2)?).try_fold(said.get(4..)?, |rest, _| behind_rect(rest)),
        _ => None,
    }
}

fn behind_rect(said: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| Some(usize::from(u16::from_be_bytes(said.get(at..at + 2)?.try_into().unwrap())));
    let (width, height) = (number(4)?, number(6)?);
    let encoding = i32::from_be_bytes(said.get(8..12)?.try_into().unwrap());
    let mut rest = said.get(12..)?;
    match encoding {
        RAW => rest.get(width * height * 4..),
        COPY_RECT => rest.get(4..),
        RRE => rest.get(8 + 12 * u32::from_be_bytes(rest.get(..4)?.try_into().unwrap()) as usize..),
        DESKTOP_SIZE | POINTER_TYPE | EXTENDED_KEY => Some(rest),
        CURSOR => rest.get(width * height * 4 + width.div_ceil(8) * height..),
        HEXTILE => {
            for y in (0..height).step_by(16) {
                for x in (0..width).step_by(16) {
                    let pixels = 16.min(width - x) * 16.min(height - y);
                    let (&says, mut tile) = rest.split_first()?;
                    if says & 1 != 0 {
                        rest = tile.get(pixels * 4..)?;
                        continue;
                    }
                    tile = tile.get(if says & 2 != 0 { 4 } else { 0 }..)?;
                    tile = tile.get(if says & 4 != 0 { 4 } else { 0 }..)?;
                    if says & 8 != 0 {
                        let (&count, parts) = tile.split_first()?;
                        tile = parts.get(usize::from(count) * if says & 16 != 0 { 6 } else { 2 }..)?;
                    }
                    rest = tile;
                }
            }
            Some(rest)
        }
        _ => None,
    }
}

fn client_message() -> impl Strategy<Value = ClientMessage> {
    prop_oneof![
        Just(ClientMessage::SetPixelFormat(FORMAT)),
        prop::collection::vec(prop::sample::select(&ENCODINGS[..]), 0..9).prop_map(ClientMessage::SetEncodings),
        any::<[u8; 9]>().prop_map(ClientMessage::UpdateRequest),
        (any::<bool>(), any::<u32>()).prop_map(|(is_down, symbol)| ClientMessage::Key { is_down, symbol }),
        (any::<bool>(), any::<u32>(), any::<u32>()).prop_map(|(is_down, symbol, place)| ClientMessage::PlacedKey {
            is_down,
            symbol,
            place
        }),
        (any::<u8>(), any::<[u8; 4]>()).prop_map(|(buttons, place)| ClientMessage::Pointer { buttons, place }),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(ClientMessage::CutText),
    ]
}

proptest! {
    /// Wherever a server is cut off, the viewer has whole messages then, and those that were whole are as they were.
    #[test]
    fn a_server_that_is_cut_off_ends_with_a_whole_message(
        messages in prop::collection::vec(message(), 1..5), cut: prop::sample::Index, piece in 1usize..50,
    ) {
        let said = messages.concat();
        let cut = cut.index(said.len() + 1);
        let mut follower = Follower::new(FORMAT, (640, 480)).unwrap();
        for piece in said[..cut].chunks(piece) {
            follower.hear(piece);
        }
        let ends = messages.iter().scan(0, |end, message| { *end += message.len(); Some(*end) });
        prop_assert_eq!(follower.is_between(), cut == 0 || ends.clone().any(|end| end == cut));
        let mut seen = said[..cut].to_vec();
        follower.complete(&ENCODINGS, &mut seen).unwrap();
        prop_assert!(follower.is_between());
        let (mut rest, mut count) = (&seen[..], 0);
        while !rest.is_empty() {
            let next = behind(rest);
            prop_assert!(next.is_some(), "a message is not whole");
            rest = next.unwrap();
            count += 1;
        }
        prop_assert_eq!(count, ends.filter(|end| *end < cut).count() + usize::from(cut > 0));
    }

    #[test]
    fn what_a_viewer_says_arrives_in_any_pieces(
        messages in prop::collection::vec(client_message(), 0..9), piece in 1usize..50,
    ) {
        let mut heard = ClientMessages::default();
        let mut all = Vec::new();
        for piece in messages.iter().flat_map(ClientMessage::encode).collect::<Vec<u8>>().chunks(piece) {
            heard.hear(piece);
            while let Some(message) = heard.next_message().unwrap() {
                all.push(message);
            }
        }
        prop_assert_eq!(all, messages);
    }

    /// Each key goes to one server, and the second one has all that the viewer has asked for.
    #[test]
    fn another_server_gets_what_the_first_did_not(
        messages in prop::collection::vec(client_message(), 0..30), confirmed: prop::sample::Index,
    ) {
        let mut relay = Relay::new(&init((640, 480))).unwrap();
        let confirmed = confirmed.index(messages.len() + 1);
        for (index, message) in messages.iter().enumerate() {
            let bytes = relay.send(message.clone()).unwrap();
            if index < confirmed {
                prop_assert!(relay.confirm(u32::try_from(bytes.len()).unwrap()));
            }
        }
        let (mut server, mut viewer) = (Vec::new(), Vec::new());
        relay.end(true, &mut viewer).unwrap();
        relay.begin(&init((640, 480)), &mut server, &mut viewer).unwrap();
        prop_assert!(viewer.is_empty());
        let mut heard = ClientMessages::default();
        heard.hear(&server);
        let mut said = Vec::new();
        while let Some(message) = heard.next_message().unwrap() {
            said.push(message);
        }
        prop_assert_eq!(said.pop(), Some(ClientMessage::whole((640, 480))));
        prop_assert_eq!(said.remove(0), ClientMessage::SetPixelFormat(FORMAT));
        let encodings = messages.iter().rev().find(|message| matches!(message, ClientMessage::SetEncodings(_)));
        prop_assert_eq!(said.iter().find(|message| matches!(message, ClientMessage::SetEncodings(_))), encodings);
        let is_input = |message: &&ClientMessage| {
            use ClientMessage::{CutText, Key, PlacedKey, Pointer};
            matches!(message, Key { .. } | PlacedKey { .. } | Pointer { .. } | CutText(_))
        };
        let wanted: Vec<_> = messages[confirmed..].iter().filter(is_input).collect();
        let got: Vec<_> = said.iter().filter(is_input).collect();
        prop_assert!(got.ends_with(&wanted));
        // Before these only what is down.
        for message in &got[..got.len() - wanted.len()] {
            use ClientMessage::{Key, PlacedKey, Pointer};
            let is_down =
                matches!(message, Key { is_down: true, .. } | PlacedKey { is_down: true, .. } | Pointer { buttons: 1.., .. });
            prop_assert!(is_down, "{:?}", message);
        }
    }

    #[test]
    fn any_bytes_are_understood_or_refused(bytes: Vec<u8>, version in "RFB 003\\.[0-9]{3}\n") {
        for bytes in [&bytes[..], &[version.as_bytes(), &bytes].concat(), &[&VERSION[..], &bytes].concat()] {
            Greeting::default().hear(bytes, &mut Vec::new()).ok();
            Welcome::new().0.hear(bytes, &mut Vec::new()).ok();
        }
        let mut heard = ClientMessages::default();
        heard.hear(&bytes);
        while let Ok(Some(_)) = heard.next_message() {}
        let mut follower = Follower::new(FORMAT, (640, 480)).unwrap();
        follower.hear(&bytes);
    }
}

const VERSION: &[u8; 12] = b"RFB 003.008\n";

#[test]
fn both_sides_shake_hands() {
    let server = ServerInit { size: (720, 400), format: FORMAT, name: vec![b'x'; 300] };
    let (mut welcome, mut to_viewer) = Welcome::new();
    let mut greeting = Greeting::default();
    let seen = loop {
        let mut to_server = Vec::new();
        let said = std::mem::take(&mut to_viewer);
        for byte in said {
            assert_eq!(greeting.hear(&[byte], &mut to_server).unwrap(), None);
        }
        let mut is_ready = false;
        for byte in to_server {
            is_ready = welcome.hear(&[byte], &mut to_viewer).unwrap();
        }
        if is_ready {
            let said = [server.encode(), vec![BELL]].concat();
            break greeting.hear(&said, &mut Vec::new()).unwrap().unwrap();
        }
    };
    assert_eq!(seen, server);
    assert_eq!((greeting.rest(), welcome.rest()), (vec![BELL], vec![]));
}

#[test]
fn old_viewers_are_served_and_others_refused() {
    let answer = |said: &[u8]| {
        let mut answer = Vec::new();
        Welcome::new().0.hear(said, &mut answer).map(|is_ready| (is_ready, answer))
    };
    assert_eq!(answer(b"RFB 003.003\n\x01"), Ok((true, vec![0, 0, 0, 1])));
    assert_eq!(answer(b"RFB 003.007\n\x01\x00"), Ok((true, vec![1, 1])));
    assert_eq!(answer(b"RFB 003.008\n\x01"), Ok((false, vec![1, 1, 0, 0, 0, 0])));
    assert!(answer(b"RFB 003.008\n\x02").is_err());
    assert_eq!(answer(b"GET / HTTP/1"), Err(RfbError::NoRfb));
    let hear = |said: &[u8]| Greeting::default().hear(said, &mut Vec::new());
    assert_eq!(hear(b"RFB 003.008\n\x01\x02"), Err(RfbError::Refused));
    assert_eq!(hear(b"RFB 003.008\n\x01\x01\x00\x00\x00\x01"), Err(RfbError::Refused));
}

#[test]
fn encodings_with_a_memory_are_not_asked_for() {
    let wanted = [7, 16, 6, HEXTILE, RAW, DESKTOP_SIZE, -260, -308, EXTENDED_KEY];
    assert_eq!(filter(&wanted), [HEXTILE, RAW, DESKTOP_SIZE, EXTENDED_KEY]);
}

#[test]
fn long_texts_are_left_out() {
    let mut heard = ClientMessages::default();
    let length = CUT_BYTES_MAX + 1;
    let text = [&[6, 0, 0, 0][..], &u32::try_from(length).unwrap().to_be_bytes(), &vec![7; length]].concat();
    let key = ClientMessage::Key { is_down: true, symbol: 0x61 };
    for piece in [text, key.encode()].concat().chunks(1000) {
        heard.hear(piece);
    }
    assert_eq!(heard.next_message(), Ok(Some(key)));
    assert_eq!(heard.next_message(), Ok(None));
}

#[test]
fn a_key_that_is_down_is_down_at_the_next_server() {
    let key = |is_down, symbol| ClientMessage::Key { is_down, symbol };
    let mut relay = Relay::new(&init((640, 480))).unwrap();
    let mut confirmed = 0;
    for message in [key(true, 0xffe1), key(true, 0x41), key(false, 0x41)] {
        confirmed += u32::try_from(relay.send(message).unwrap().len()).unwrap();
    }
    assert!(relay.confirm(confirmed));
    assert!(!relay.confirm(1), "more than was sent");
    relay.send(key(false, 0xffe1)).unwrap();
    let (mut server, mut viewer) = (Vec::new(), Vec::new());
    relay.end(true, &mut viewer).unwrap();
    relay.begin(&init((640, 480)), &mut server, &mut viewer).unwrap();
    let replayed = [key(true, 0xffe1), key(false, 0xffe1)].map(|key| key.encode()).concat();
    assert!(server.windows(replayed.len()).any(|bytes| bytes == replayed));

    // Of a server that broke off nobody knows what it took.
    relay.send(key(true, 0x42)).unwrap();
    relay.end(false, &mut viewer).unwrap();
    server.clear();
    relay.begin(&init((640, 480)), &mut server, &mut viewer).unwrap();
    let lost = key(true, 0x42).encode();
    assert!(!server.windows(lost.len()).any(|bytes| bytes == lost));
}

#[test]
fn a_viewer_hears_of_another_size_if_it_can() {
    let mut relay = Relay::new(&init((640, 480))).unwrap();
    let (mut server, mut viewer) = (Vec::new(), Vec::new());
    assert!(relay.begin(&init((720, 400)), &mut server, &mut viewer).is_err());
    relay.send(ClientMessage::SetEncodings(vec![RAW, DESKTOP_SIZE])).unwrap();
    relay.begin(&init((720, 400)), &mut server, &mut viewer).unwrap();
    assert_eq!(behind(&viewer), Some(&[][..]));
    assert!(server.ends_with(&ClientMessage::whole((720, 400)).encode()));
}

#[test]
fn a_message_without_an_end_is_given_up() {
    let mut follower = Follower::new(FORMAT, (640, 480)).unwrap();
    follower.hear(&[CUT, 0, 0, 0, 255, 255, 255, 255]);
    assert!(follower.complete(&[], &mut Vec::new()).is_err());
    let mut follower = Follower::new(FORMAT, (640, 480)).unwrap();
    follower.hear(&[77, 1, 2, 3]);
    assert!(!follower.is_between() && follower.complete(&[], &mut Vec::new()).is_err());
}
