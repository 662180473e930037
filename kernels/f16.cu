#include "entries.cuh"

FOREBAY_F16(f16, F16)
