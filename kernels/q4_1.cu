#include "entries.cuh"

FOREBAY_TYPE(q4_1, Q4_1)
