#include "entries.cuh"

FOREBAY_TYPE(iq4_nl, IQ4_NL)
