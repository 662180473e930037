#include "entries.cuh"

FOREBAY_F32(f32, F32)
