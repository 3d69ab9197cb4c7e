//! How one input of a fuzzer becomes several messages: a code, a length, and so many bytes, again and
//! again. A length that exceeds what is left means what is left, so each input says something.

/// The messages of an input.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    /// Reads `data`.
    pub const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[code, low, high], rest) = self.0.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (message, rest) = rest.split_at(length);
        self.0 = rest;
        Some((code, message))
    }
}

/// The input that says this message.
pub fn frame(code: u8, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a frame holds less than 64 KiB");
    [&[code][..], &length.to_le_bytes(), message].concat()
}
