//! stub
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interleaved;
impl Interleaved {
    pub(crate) fn new(_: forebay_format::Dtype, _: usize, _: usize) -> Result<Self, ()> {
        Err(())
    }
    pub(crate) fn scatter(&self, _: u64, _: &[u8], _: &mut [u8]) {}
    pub(crate) fn gather(&self, _: u64, _: &[u8], _: &mut [u8]) {}
    pub(crate) fn touched(&self, o: u64, b: u64) -> std::ops::Range<u64> {
        o..o + b
    }
}
