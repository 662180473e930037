#include "entries.cuh"

FOREBAY_TYPE(q4_k, Q4_K)
