#include "entries.cuh"

FOREBAY_TYPE(q4_0, Q4_0)
