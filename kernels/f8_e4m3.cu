#include "entries.cuh"

FOREBAY_TYPE(f8_e4m3, F8_E4M3)
