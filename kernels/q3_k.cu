#include "entries.cuh"

FOREBAY_TYPE(q3_k, Q3_K)
