#include "entries.cuh"

FOREBAY_TYPE(q8_0, Q8_0)
