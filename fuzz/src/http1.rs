//! Bytes of HTTP/1: requests, responses, bodies in chunks.

use slotmesh_proxy::http1_checks;

/// Reads the bytes as a request, a response and a body in chunks, which is cut where the first byte says.
pub fn http1(data: &[u8]) {
    http1_checks::request(data);
    http1_checks::response(data);
    if let Some((cut, body)) = data.split_first() {
        http1_checks::chunks(body, usize::from(*cut));
    }
}
