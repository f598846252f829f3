//! One viewer's connection over the servers of a VM, one after the other.

use super::{ClientMessage, DESKTOP_SIZE, Follower, PixelFormat, RfbError, ServerInit};
use std::collections::VecDeque;

/// Messages on their way to the server, at most: whoever relays waits then.
const SENT_MAX: usize = 1024;
/// Keys that are down at the same time: nobody has more fingers.
const HELD_MAX: usize = 32;

/// What a new server must be told so that the viewer notices nothing.
#[derive(Clone, Debug)]
pub struct Relay {
    follower: Follower,
    format: PixelFormat,
    encodings: Option<Vec<i32>>,
    /// What was sent and is not confirmed, with its bytes.
    sent: VecDeque<(usize, ClientMessage)>,
    /// Bytes that are confirmed of the first of them.
    confirmed: usize,
    /// Keys that the guest was told are down.
    held: Vec<ClientMessage>,
    pointer: Option<ClientMessage>,
}

impl Relay {
    /// A viewer that was told of the display.
    ///
    /// # Errors
    /// If there is no such pixel.
    pub fn new(init: &ServerInit) -> Result<Self, RfbError> {
        Ok(Self {
            follower: Follower::new(init.format, init.size)?,
            format: init.format,
            encodings: None,
            sent: VecDeque::new(),
            confirmed: 0,
            held: Vec::new(),
            pointer: None,
        })
    }

    /// Whether more may be sent before something is confirmed.
    pub fn has_room(&self) -> bool {
        self.sent.len() < SENT_MAX
    }

    /// The bytes of a viewer's message for the server.
    ///
    /// # Errors
    /// If there is no such pixel.
    pub fn send(&mut self, message: ClientMessage) -> Result<Vec<u8>, RfbError> {
        match &message {
            ClientMessage::SetPixelFormat(format) => {
                self.follower.set_format(*format)?;
                self.format = *format;
            }
            ClientMessage::SetEncodings(encodings) => self.encodings = Some(encodings.clone()),
            _ => {}
        }
        let bytes = message.encode();
        self.sent.push_back((bytes.len(), message));
        Ok(bytes)
    }

    /// The server has so many further bytes; false if there were not so many.
    pub fn confirm(&mut self, count: u32) -> bool {
        self.confirmed += count as usize;
        while let Some((bytes, _)) = self.sent.front()
            && *bytes <= self.confirmed
            && let Some((bytes, message)) = self.sent.pop_front()
        {
            self.confirmed -= bytes;
            self.note(message);
        }
        self.confirmed == 0 || !self.sent.is_empty()
    }

    /// The guest knows it.
    fn note(&mut self, message: ClientMessage) {
        match message {
            ClientMessage::Key { is_down, .. } | ClientMessage::PlacedKey { is_down, .. } => {
                self.held.retain(|held| !is_same_key(held, &message));
                if is_down && self.held.len() < HELD_MAX {
                    self.held.push(message);
                }
            }
            ClientMessage::Pointer { .. } => self.pointer = Some(message),
            _ => {}
        }
    }

    /// The server says something, which goes to the viewer as it is.
    pub fn hear(&mut self, bytes: &[u8]) {
        self.follower.hear(bytes);
    }

    /// The server has gone; without order, if nobody knows what it took of what is not confirmed. What ends its last
    /// message goes to `viewer`.
    ///
    /// # Errors
    /// If the viewer can't go on.
    pub fn end(&mut self, in_order: bool, viewer: &mut Vec<u8>) -> Result<(), RfbError> {
        if !in_order {
            // A key must not come twice.
            self.sent.clear();
        }
        self.confirmed = 0;
        self.follower.complete(self.encodings.as_deref().unwrap_or_default(), viewer)
    }

    /// Another server: what to tell it, and what the viewer, goes to `server` and `viewer`.
    ///
    /// # Errors
    /// If the viewer can't go on.
    pub fn begin(&mut self, init: &ServerInit, server: &mut Vec<u8>, viewer: &mut Vec<u8>) -> Result<(), RfbError> {
        if init.size != self.follower.size() {
            if !self.encodings.as_ref().is_some_and(|encodings| encodings.contains(&DESKTOP_SIZE)) {
                return Err(RfbError::Nonsense("the display has another size, and the viewer knows only one"));
            }
            let update = new_size(init.size);
            self.follower.hear(&update);
            viewer.extend(update);
        }
        let unconfirmed: Vec<ClientMessage> = self.sent.drain(..).map(|(_, message)| message).collect();
        let mut say = vec![ClientMessage::SetPixelFormat(self.format)];
        say.extend(self.encodings.clone().map(ClientMessage::SetEncodings));
        // This server believes that no key and no button is down, and would keep it to itself when one goes up.
        say.append(&mut self.held);
        let has_button = |pointer: &ClientMessage| matches!(pointer, ClientMessage::Pointer { buttons: 1.., .. });
        say.extend(self.pointer.take().filter(has_button));
        say.extend(unconfirmed.into_iter().filter(is_for_the_guest));
        // The viewer may wait for an answer to a request that died, and has lost what was cut off.
        say.push(ClientMessage::whole(init.size));
        for message in say {
            server.extend(self.send(message)?);
        }
        Ok(())
    }
}

fn is_same_key(one: &ClientMessage, other: &ClientMessage) -> bool {
    use ClientMessage::{Key, PlacedKey};
    match (one, other) {
        (Key { symbol: one, .. }, Key { symbol: other, .. }) => one == other,
        (PlacedKey { place: one, .. }, PlacedKey { place: other, .. }) => one == other,
        _ => false,
    }
}

fn is_for_the_guest(message: &ClientMessage) -> bool {
    match message {
        ClientMessage::Key { .. }
        | ClientMessage::PlacedKey { .. }
        | ClientMessage::Pointer { .. }
        | ClientMessage::CutText(_) => true,
        ClientMessage::SetPixelFormat(_) | ClientMessage::SetEncodings(_) | ClientMessage::UpdateRequest(_) => false,
    }
}

/// An update that says only that the display has another size.
fn new_size((width, height): (u16, u16)) -> Vec<u8> {
    let mut update = vec![0, 0, 0, 1, 0, 0, 0, 0];
    update.extend(width.to_be_bytes());
    update.extend(height.to_be_bytes());
    update.extend(DESKTOP_SIZE.to_be_bytes());
    update
}
