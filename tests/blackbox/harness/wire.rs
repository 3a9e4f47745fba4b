//! The other end of a network card's cable: a host that answers ARP for one address, and every ping.
//!
//! QEMU's `socket` network sends each Ethernet frame over TCP, behind its length (four bytes, the highest first).

use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::Fallible;

/// The host's own address.
pub(crate) const PEER_MAC: &str = "02:00:5e:00:53:01";
const MAC: [u8; 6] = [2, 0, 0x5e, 0, 0x53, 1];

/// A cable that a card can be plugged to.
pub(crate) struct Wire {
    /// For QEMU's `connect=`.
    pub(crate) address: String,
    pinged: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    /// Listens for a card. The host answers ARP requests for `gateway` alone.
    pub(crate) fn new(gateway: Ipv4Addr) -> Fallible<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0")?, gateway)
    }

    /// As [`Wire::new`], on a socket that a machine may have been told of before there was a runtime.
    pub(crate) fn on(listener: TcpListener, gateway: Ipv4Addr) -> Fallible<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let pinged = Arc::<Mutex<Vec<String>>>::default();
        let seen = pinged.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // It ends with the card.
                let _ = serve(stream, gateway, &seen).await;
            }
        });
        Ok(Self { address, pinged, task })
    }

    /// Who has been pinged over this cable so far, each once.
    pub(crate) fn pinged(&self) -> Vec<String> {
        let mut all = self.pinged.lock().unwrap().clone();
        all.sort_unstable();
        all.dedup();
        all
    }
}

async fn serve(mut stream: TcpStream, gateway: Ipv4Addr, pinged: &Mutex<Vec<String>>) -> std::io::Result<()> {
    loop {
        let len = stream.read_u32().await?;
        let mut frame = vec![0; usize::try_from(len).unwrap_or(0).min(1 << 16)];
        stream.read_exact(&mut frame).await?;
        if let Some((answer, target)) = answer(&frame, gateway) {
            pinged.lock().unwrap().extend(target);
            stream.write_u32(u32::try_from(answer.len()).unwrap_or(0)).await?;
            stream.write_all(&answer).await?;
        }
    }
}

/// The answer to a frame, if there is one, and who was pinged.
fn answer(frame: &[u8], gateway: Ipv4Addr) -> Option<(Vec<u8>, Option<String>)> {
    let mut answer = frame.to_vec();
    answer.get_mut(0..6)?.copy_from_slice(frame.get(6..12)?);
    answer.get_mut(6..12)?.copy_from_slice(&MAC);
    match frame.get(12..14)? {
        // ARP: an answer has both sides exchanged, and the address that was asked for.
        [8, 6] if frame.get(20..22)? == [0, 1] && frame.get(38..42)? == gateway.octets() => {
            answer[21] = 2;
            answer[22..28].copy_from_slice(&MAC);
            answer[28..32].copy_from_slice(&frame[38..42]);
            answer[32..42].copy_from_slice(&frame[22..32]);
            Some((answer, None))
        }
        // ICMP: an echo request has the type 8, its answer 0. The checksum is of the ones' complement.
        [8, 0] if frame.get(23) == Some(&1) && frame.get(34) == Some(&8) => {
            let target = Ipv4Addr::new(frame[30], frame[31], frame[32], frame[33]).to_string();
            answer[26..30].copy_from_slice(&frame[30..34]);
            answer[30..34].copy_from_slice(&frame[26..30]);
            answer[34] = 0;
            add_to_checksum(&mut answer, 36, 0x0800)?;
            Some((answer, Some(target)))
        }
        // ICMPv6: 128 and 129.
        [0x86, 0xdd] if frame.get(20) == Some(&58) && frame.get(54) == Some(&128) => {
            let target: [u8; 16] = frame.get(38..54)?.try_into().ok()?;
            answer[22..38].copy_from_slice(&frame[38..54]);
            answer[38..54].copy_from_slice(&frame[22..38]);
            answer[54] = 129;
            // Minus 0x0100.
            add_to_checksum(&mut answer, 56, 0xfeff)?;
            Some((answer, Some(std::net::Ipv6Addr::from(target).to_string())))
        }
        _ => None,
    }
}

fn add_to_checksum(frame: &mut [u8], at: usize, difference: u16) -> Option<()> {
    let bytes: &mut [u8; 2] = frame.get_mut(at..at + 2)?.try_into().ok()?;
    let (sum, carry) = u16::from_be_bytes(*bytes).overflowing_add(difference);
    *bytes = (sum + u16::from(carry)).to_be_bytes();
    Some(())
}
