//! Reproducible random numbers and bytes from a seed.

/// A SplitMix64 generator: every seed is equally good.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Creates the generator of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end
    }

    /// A number in `0.0..1.0`.
    pub fn fraction(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Fills a buffer with the next bytes. Buffers whose sizes are multiples of
    /// eight get the same sequence, however it is divided.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Compares bytes that arrive in pieces with those of a seed.
#[derive(Debug)]
pub struct ExpectedBytes {
    random: Random,
    /// Generated and not yet compared.
    ahead: Vec<u8>,
    at: u64,
}

impl ExpectedBytes {
    /// Expects the bytes of this seed.
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), ahead: Vec::new(), at: 0 }
    }

    /// The number of bytes that matched.
    pub fn matched(&self) -> u64 {
        self.at
    }

    /// Compares the next piece.
    ///
    /// # Errors
    /// The offset of the first wrong byte in the sequence.
    pub fn take(&mut self, piece: &[u8]) -> Result<(), u64> {
        let made = self.ahead.len();
        if made < piece.len() {
            let missing = (piece.len() - made).next_multiple_of(8);
            self.ahead.resize(made + missing, 0);
            self.random.fill(&mut self.ahead[made..]);
        }
        let right = piece.iter().zip(&self.ahead).take_while(|(a, b)| a == b).count();
        self.at += right as u64;
        if right < piece.len() {
            return Err(self.at);
        }
        self.ahead.drain(..right);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_any_size_match_one_sequence() {
        let mut bytes = vec![0; 1000];
        Random::new(7).fill(&mut bytes);
        let mut expected = ExpectedBytes::new(7);
        for piece in bytes.chunks(13) {
            expected.take(piece).unwrap();
        }
        assert_eq!(expected.matched(), 1000);
    }

    #[test]
    fn lost_doubled_and_changed_bytes_are_located() {
        let mut bytes = vec![0; 1000];
        Random::new(7).fill(&mut bytes);
        let wrong = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut changed = bytes.clone();
            change(&mut changed);
            ExpectedBytes::new(7).take(&changed)
        };
        assert_eq!(wrong(&|bytes| bytes[500] ^= 1), Err(500));
        assert!(wrong(&|bytes| bytes.truncate(500)).is_ok());
        assert!(wrong(&|bytes| bytes.copy_within(501.., 500)).is_err());
        assert!(wrong(&|bytes| bytes.insert(500, bytes[499])).is_err());
        assert!(ExpectedBytes::new(8).take(&bytes).is_err());
    }
}
