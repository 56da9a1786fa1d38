// What `choose` of ceiling.cu says of each tile of 16 pixels, and `take` of gate.cu does: bits of a byte. Tiles stand in
// pairs, as the 32 pixels of a word of a mask do.
#define GOES 1  // what changed of it is taken over
#define TURN 2  // all of it that differs at all is: `refresh` has come to it

// The pixels of a word that are of tiles for which this holds.
__device__ __forceinline__ u32 halves(bool left, bool right) { return (left ? 0xffff : 0) | (right ? 0xffff0000 : 0); }
