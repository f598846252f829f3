//! What client and server agree on before the first read: the one export there is.

use super::{Disk, REQUEST_BYTES_MAX, invalid};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const INFO: u32 = 6;
const GO: u32 = 7;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFORMATION: u32 = 3;
/// The least of all errors.
const FAILED: u32 = 1 << 31;
const UNSUPPORTED: u32 = FAILED + 1;
const MALFORMED: u32 = FAILED + 3;
const UNKNOWN: u32 = FAILED + 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Flags are there, writing is not, and several connections see one content.
const EXPORT_FLAGS: u16 = 1 | 1 << 1 | 1 << 8;

/// Bytes of one option: a name and a few numbers.
const OPTION_BYTES_MAX: u32 = 8 << 10;
/// Replies to one option: what there is to know of an export, or a list of exports.
const REPLIES_MAX: usize = 64;
/// Options of one client; each of those that exist comes a few times at most.
const OPTIONS_MAX: usize = 64;

/// Negotiates; says whether requests follow.
pub(super) async fn negotiate(
    reading: &mut (impl AsyncRead + Unpin),
    writing: &mut (impl AsyncWrite + Unpin),
    disk: &impl Disk,
) -> io::Result<bool> {
    let greeting = [MAGIC.as_slice(), OPTION_MAGIC, &(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes()].concat();
    send(writing, &greeting).await?;
    let no_zeroes = reading.read_u32().await? & u32::from(NO_ZEROES) != 0;
    for _ in 0..OPTIONS_MAX {
        let (option, data) = read_option(reading).await?;
        match option {
            EXPORT_NAME => {
                // This old option knows no refusal but the end.
                if !is_known(&data, disk) {
                    return Ok(false);
                }
                let zeroes = if no_zeroes { 0 } else { 124 };
                let export = [export(disk).as_slice(), &vec![0; zeroes]].concat();
                return send(writing, &export).await.map(|()| true);
            }
            ABORT => {
                reply(writing, option, ACK, &[]).await?;
                return Ok(false);
            }
            LIST => {
                let name = disk.name().as_bytes();
                let length = u32::try_from(name.len()).map_err(io::Error::other)?;
                reply(writing, option, SERVER, &[&length.to_be_bytes(), name].concat()).await?;
                reply(writing, option, ACK, &[]).await?;
            }
            INFO | GO => {
                let is_agreed = inform(writing, option, &data, disk).await?;
                if is_agreed && option == GO {
                    return Ok(true);
                }
            }
            _ => reply(writing, option, UNSUPPORTED, &[]).await?,
        }
    }
    Err(invalid("too many options"))
}

/// Passes on what a client and a server agree on; says whether requests follow. What would change their shape is
/// refused in the server's place.
pub(super) async fn pass_options(
    (from_client, to_client): (&mut (impl AsyncRead + Unpin), &mut (impl AsyncWrite + Unpin)),
    (from_server, to_server): (&mut (impl AsyncRead + Unpin), &mut (impl AsyncWrite + Unpin)),
) -> io::Result<bool> {
    let mut greeting = [0; 18];
    from_server.read_exact(&mut greeting).await?;
    if !greeting.starts_with(MAGIC) || !greeting[8..].starts_with(OPTION_MAGIC) {
        return Err(invalid("not a server of the new style"));
    }
    send(to_client, &greeting).await?;
    send(to_server, &from_client.read_u32().await?.to_be_bytes()).await?;
    for _ in 0..OPTIONS_MAX {
        let (option, data) = read_option(from_client).await?;
        if !matches!(option, ABORT | LIST | INFO | GO) {
            reply(to_client, option, UNSUPPORTED, &[]).await?;
            continue;
        }
        let length = u32::try_from(data.len()).map_err(io::Error::other)?;
        let head = [option, length].map(u32::to_be_bytes).concat();
        send(to_server, &[OPTION_MAGIC.as_slice(), &head, &data].concat()).await?;
        let last = pass_replies(from_server, to_client).await?;
        if option == ABORT || (option == GO && last == ACK) {
            return Ok(option == GO);
        }
    }
    Err(invalid("too many options"))
}

/// Passes on the replies to an option; the kind of the last one.
async fn pass_replies(
    reading: &mut (impl AsyncRead + Unpin),
    writing: &mut (impl AsyncWrite + Unpin),
) -> io::Result<u32> {
    for _ in 0..REPLIES_MAX {
        let magic = reading.read_u64().await?;
        let (option, kind, length) = (reading.read_u32().await?, reading.read_u32().await?, reading.read_u32().await?);
        if magic != REPLY_MAGIC || length > OPTION_BYTES_MAX {
            return Err(invalid("not a reply to an option"));
        }
        let mut data = vec![0; length as usize];
        reading.read_exact(&mut data).await?;
        reply(writing, option, kind, &data).await?;
        if kind == ACK || kind >= FAILED {
            return Ok(kind);
        }
    }
    Err(invalid("too many replies"))
}

async fn read_option(reading: &mut (impl AsyncRead + Unpin)) -> io::Result<(u32, Vec<u8>)> {
    let mut magic = [0; 8];
    reading.read_exact(&mut magic).await?;
    let (option, length) = (reading.read_u32().await?, reading.read_u32().await?);
    if magic != *OPTION_MAGIC || length > OPTION_BYTES_MAX {
        return Err(invalid("not an option"));
    }
    let mut data = vec![0; length as usize];
    reading.read_exact(&mut data).await?;
    Ok((option, data))
}

/// Tells what there is to know of the export that the client names.
async fn inform(
    writing: &mut (impl AsyncWrite + Unpin),
    option: u32,
    data: &[u8],
    disk: &impl Disk,
) -> io::Result<bool> {
    let Some(name) = name_of(data) else {
        return reply(writing, option, MALFORMED, &[]).await.map(|()| false);
    };
    if !is_known(name, disk) {
        return reply(writing, option, UNKNOWN, &[]).await.map(|()| false);
    }
    let about = [INFO_EXPORT.to_be_bytes().as_slice(), &export(disk)].concat();
    reply(writing, option, INFORMATION, &about).await?;
    let sizes = [1, disk.piece_bytes(), REQUEST_BYTES_MAX].map(u32::to_be_bytes).concat();
    let sizes = [INFO_BLOCK_SIZE.to_be_bytes().as_slice(), &sizes].concat();
    reply(writing, option, INFORMATION, &sizes).await?;
    reply(writing, option, ACK, &[]).await.map(|()| true)
}

/// The name in the data of these options: its length, itself, a count of wishes, and so many wishes.
fn name_of(data: &[u8]) -> Option<&[u8]> {
    let (length, rest) = data.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    let (count, wishes) = rest.split_first_chunk()?;
    (wishes.len() == 2 * usize::from(u16::from_be_bytes(*count))).then_some(name)
}

/// The one export is also the default one.
fn is_known(name: &[u8], disk: &impl Disk) -> bool {
    name.is_empty() || name == disk.name().as_bytes()
}

fn export(disk: &impl Disk) -> [u8; 10] {
    let mut export = [0; 10];
    export[..8].copy_from_slice(&disk.size_bytes().to_be_bytes());
    export[8..].copy_from_slice(&EXPORT_FLAGS.to_be_bytes());
    export
}

async fn reply(writing: &mut (impl AsyncWrite + Unpin), option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let head = [option, kind, length].map(u32::to_be_bytes).concat();
    send(writing, &[&REPLY_MAGIC.to_be_bytes(), head.as_slice(), data].concat()).await
}

async fn send(writing: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    writing.write_all(bytes).await?;
    writing.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_stand_between_their_length_and_the_wishes() {
        assert_eq!(name_of(&[0, 0, 0, 1, b'x', 0, 1, 0, 3]), Some(b"x".as_slice()));
        assert_eq!(name_of(&[0, 0, 0, 0, 0, 0]), Some(b"".as_slice()));
        assert_eq!(name_of(&[0, 0, 0, 0, 0, 1]), None);
        assert_eq!(name_of(&[255, 255, 255, 255, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn any_data_has_a_name_or_none(data: Vec<u8>) {
            let _ = name_of(&data);
        }
    }
}
