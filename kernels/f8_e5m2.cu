#include "entries.cuh"

FOREBAY_TYPE(f8_e5m2, F8_E5M2)
