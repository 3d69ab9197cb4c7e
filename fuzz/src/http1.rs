//! Bytes of HTTP/1: requests, responses, bodies in chunks.

use slotmesh_proxy::fuzz;

/// Reads the bytes as a request, a response and a body in chunks, which is cut where the first byte says.
pub fn http1(data: &[u8]) {
    fuzz::request(data);
    fuzz::response(data);
    if let Some((cut, body)) = data.split_first() {
        fuzz::chunks(body, usize::from(*cut));
    }
}
