#include "entries.cuh"

FOREBAY_TYPE(q2_k, Q2_K)
