// Marks a function that the host and the device share, in headers that a host compiler reads too.
#pragma once

#ifdef __CUDACC__
#define MS_HOST_DEVICE __host__ __device__
#else
#define MS_HOST_DEVICE
#endif
