//! The network as QEMU's user-mode stack has it: a fixed address, a gateway and a name server, set over netlink.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::sys;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const PREFIX: u8 = 24;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server of that network.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

// From the kernel's include/uapi/linux: netlink.h, rtnetlink.h, if.h, if_addr.h.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const AF_INET: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// Brings up localhost, and `eth0` where there is one.
///
/// # Errors
/// The kernel refuses.
pub fn bring_up() -> io::Result<()> {
    // No protocol is protocol 0, NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    if let Some(lo) = index_of("lo")? {
        request(&socket, RTM_NEWLINK, 0, &link_up(lo))?;
    }
    if let Some(eth0) = index_of("eth0")? {
        let set = NLM_F_CREATE | NLM_F_REPLACE;
        request(&socket, RTM_NEWLINK, 0, &link_up(eth0))?;
        request(&socket, RTM_NEWADDR, set, &address(eth0))?;
        request(&socket, RTM_NEWROUTE, set, &default_route(eth0))?;
    }
    Ok(())
}

/// A socket through which the kernel can be asked about its interfaces.
///
/// # Errors
/// The kernel refuses.
pub fn any_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// Gives `eth0`, where there is one, another hardware address. Every restored machine does this before anything else, and netlink is
/// more work for an emulated kernel.
///
/// # Errors
/// The kernel refuses.
pub fn set_hardware_address(socket: &OwnedFd, mac: [u8; 6]) -> io::Result<()> {
    match sys::set_hardware_address(socket, *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0", mac) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(()),
        set => set,
    }
}

fn index_of(interface: &str) -> io::Result<Option<u32>> {
    match fs::read_to_string(Path::new("/sys/class/net").join(interface).join("ifindex")) {
        Ok(text) => text.trim().parse().map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `struct ifinfomsg`: family, padding, type, index, flags, change mask.
fn link_up(index: u32) -> Vec<u8> {
    [[0; 4].as_slice(), &index.to_ne_bytes(), &IFF_UP.to_ne_bytes(), &IFF_UP.to_ne_bytes()].concat()
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index; then attributes.
fn address(index: u32) -> Vec<u8> {
    let mut message = [[AF_INET, PREFIX, 0, 0].as_slice(), &index.to_ne_bytes()].concat();
    push_attribute(&mut message, IFA_LOCAL, ADDRESS.octets());
    push_attribute(&mut message, IFA_ADDRESS, ADDRESS.octets());
    message
}

/// `struct rtmsg`: family, destination and source length, type of service, table, protocol, scope, type, flags; then
/// attributes.
fn default_route(index: u32) -> Vec<u8> {
    let mut message = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0, 0, 0, 0];
    push_attribute(&mut message, RTA_GATEWAY, GATEWAY.octets());
    push_attribute(&mut message, RTA_OIF, index.to_ne_bytes());
    message
}

/// `struct rtattr`: length with header, type, value. Every value here has four bytes, so that none needs padding.
fn push_attribute(message: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    message.extend(8_u16.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
}

/// Sends one request (`struct nlmsghdr`: length, type, flags, sequence, port) and reads its acknowledgement.
fn request(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(16 + body.len()).expect("requests are short");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    rustix::net::send(socket, &message, SendFlags::empty())?;
    let mut reply = [0; 4096];
    let (count, _) = rustix::net::recv(socket, reply.as_mut_slice(), RecvFlags::empty())?;
    acknowledged(&reply[..count])
}

/// An acknowledgement is an error message whose number is zero.
fn acknowledged(reply: &[u8]) -> io::Result<()> {
    let kind = reply.get(4..6).and_then(|bytes| bytes.first_chunk()).map(|bytes| u16::from_ne_bytes(*bytes));
    let number = reply.get(16..20).and_then(|bytes| bytes.first_chunk()).map(|bytes| i32::from_ne_bytes(*bytes));
    match (kind, number) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(number)) => Err(io::Error::from_raw_os_error(-number)),
        (_, _) => Err(io::Error::other("the kernel answered no acknowledgement")),
    }
}
