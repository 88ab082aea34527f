#include <stdlib.h>
#include <xxhash.h>

#include "memory.h"

#define VDSO_MAX ((uint64_t)1 << 20)

int memory_vdso_info(struct process *p, uint8_t digest[16], uint32_t *vdso_pages, uint32_t *vvar_pages, struct fault *f)
{
	struct maps maps;
	uint64_t vdso = 0, vdso_len = 0, vvar_len = 0;
	if (maps_read(p, false, &maps, f) < 0)
		return -1;
	for (size_t i = 0; i < maps.n; i++) {
		const struct map *m = &maps.v[i];
		if (m->kind == MAP_KIND_VDSO) {
			vdso = m->start;
			vdso_len = m->end - m->start;
		} else if (m->kind == MAP_KIND_VVAR) {
			vvar_len += m->end - m->start;
		}
	}
	maps_free(&maps);
	if (vdso_len > VDSO_MAX)
		return fault_set(f, FAULT_KERNEL, "a vDSO of %llu bytes", (unsigned long long)vdso_len);
	auto_free char *bytes = calloc(1, vdso_len + 1);
	if (!bytes)
		abort();
	if (vdso_len && process_read(p, vdso, bytes, vdso_len, f) < 0)
		return fault_while(f, "reading the vDSO of pid %d (%s)", p->pid, p->comm);
	XXH128_canonical_t c;
	XXH128_canonicalFromHash(&c, XXH3_128bits(bytes, vdso_len));
	for (size_t i = 0; i < 16; i++)
		digest[i] = c.digest[i];
	*vdso_pages = (uint32_t)(vdso_len / PAGE_BYTES);
	*vvar_pages = (uint32_t)(vvar_len / PAGE_BYTES);
	return 0;
}
