#include "entries.cuh"

FOREBAY_TYPE(q6_k, Q6_K)
