//! Compressed streams, recognised by their first bytes: gzip and zstd.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// What a stream turned out to be.
pub(crate) enum Decoded<'a> {
    /// Its plain contents.
    Plain(Box<dyn Read + 'a>),
    /// A format that is not read here.
    Unknown(&'static str),
}

/// Looks at a stream's beginning.
pub(crate) fn decode<'a>(mut stream: impl Read + 'a) -> io::Result<Decoded<'a>> {
    let mut magic = Vec::with_capacity(4);
    stream.by_ref().take(4).read_to_end(&mut magic)?;
    let kind: [u8; 4] = std::array::from_fn(|n| magic.get(n).copied().unwrap_or_default());
    let whole = BufReader::with_capacity(64 << 10, io::Cursor::new(magic).chain(stream));
    Ok(match kind {
        [0x1f, 0x8b, ..] => Decoded::Plain(Box::new(MultiGzDecoder::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Decoded::Plain(Box::new(Zstd { source: whole, decoder: FrameDecoder::new(), within: false }))
        }
        [0xfd, b'7', b'z', b'X'] => Decoded::Unknown("xz"),
        [b'B', b'Z', b'h', _] => Decoded::Unknown("bzip2"),
        _ => Decoded::Plain(Box::new(whole)),
    })
}

/// All frames of a zstd stream, one behind the other (RFC 8878, section 3); the decoder knows single ones.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    within: bool,
}

impl<R: BufRead> Zstd<R> {
    /// Begins the next frame; false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.within && !self.next_frame()? {
                return Ok(0);
            }
            self.within = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let step = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, step).map_err(io::Error::other)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.within = !self.decoder.is_finished();
        }
    }
}
