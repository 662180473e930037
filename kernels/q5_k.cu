#include "entries.cuh"

FOREBAY_TYPE(q5_k, Q5_K)
