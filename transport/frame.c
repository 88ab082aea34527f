#include "frame.h"

#include <stddef.h>
#include <string.h>

static const struct {
	const char *name;
	uint32_t max;
} types[] = {
#define X(name, number, max) [number] = { #name, max },
	FRAME_TYPES(X)
#undef X
};

static bool known(unsigned type)
{
	return type < ARRAY_LEN(types) && types[type].name;
}

static void put(uint8_t *to, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		to[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get(const uint8_t *from, unsigned bytes)
{
	uint64_t v = 0;
	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)from[i] << (8 * i);
	return v;
}

void frame_encode(const struct frame_header *h, uint8_t out[FRAME_HEADER])
{
	put(out, h->length, 4);
	put(out + 4, h->type, 2);
	put(out + 6, h->flags, 2);
	put(out + 8, h->arg, 8);
}

int frame_decode(const uint8_t in[FRAME_HEADER], struct frame_header *h, struct fault *f)
{
	struct frame_header r = {
		.length = (uint32_t)get(in, 4),
		.type = (uint16_t)get(in + 4, 2),
		.flags = (uint16_t)get(in + 6, 2),
		.arg = get(in + 8, 8),
	};
	if (!known(r.type))
		return fault_set(f, FAULT_PROTOCOL, "frame of unknown type %u", r.type);
	if (r.flags)
		return fault_set(f, FAULT_PROTOCOL, "%s frame with unknown flags %#x", types[r.type].name, r.flags);
	if (r.length > types[r.type].max)
		return fault_set(f, FAULT_PROTOCOL, "%s frame of %u bytes, at most %u are allowed", types[r.type].name,
				 r.length, types[r.type].max);
	*h = r;
	return 0;
}

const char *frame_type_name(unsigned type)
{
	return known(type) ? types[type].name : "unknown";
}

uint32_t frame_max(unsigned type)
{
	return known(type) ? types[type].max : 0;
}
