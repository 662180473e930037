//! placeholder
use crate::args::DoctorArguments;
use crate::failure::Failure;
pub(crate) fn run(_arguments: &DoctorArguments) -> Result<(), Failure> {
    Ok(())
}
