#include "files_check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "address.h"
#include "filetab.h"

#define DIGEST_LEN 16u

/* ---- source ---- */

static bool unchanged(const struct stat *a, const struct stat *b)
{
	return a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
	       a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static bool add_digest(Cpr__NeededFile *file, struct arena *a)
{
	struct stat before, after;
	struct fault unused;
	auto_fd fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 || fstat(fd, &before) < 0 || !S_ISREG(before.st_mode))
		return false;
	file->digest.data = arena_alloc(a, DIGEST_LEN);
	file->digest.len = DIGEST_LEN;
	if (filetab_digest(fd, file->digest.data, &unused) < 0 || fstat(fd, &after) < 0)
		return false;
	return unchanged(&before, &after) && (uint64_t)after.st_size == file->size;
}

void files_add_digests(Cpr__NeededFile **files, size_t n, struct arena *a)
{
	for (size_t i = 0; i < n; i++) {
		Cpr__NeededFile *file = files[i];
		if (!file->has_digest || file->digest.len || add_digest(file, a))
			continue;
		file->has_digest = false;
		file->digest = (ProtobufCBinaryData){ 0 };
	}
}

/* ---- destination ---- */

static void add(struct report *r, enum report_severity severity, enum fault_code code, const Cpr__NeededFile *file,
		const char *remedy, const char *text)
{
	char object[FILENAME_MAX];
	snprintf(object, sizeof(object), "%.200s", file->object && *file->object ? file->object : file->path);
	report_add(r, severity, code, object, remedy, "%s", text);
}

static const char *type_name(uint32_t mode)
{
	static const struct {
		uint32_t type;
		const char *name;
	} names[] = {
		{ S_IFREG, "a regular file" }, { S_IFDIR, "a directory" }, { S_IFCHR, "a character device" },
		{ S_IFBLK, "a block device" }, { S_IFIFO, "a fifo" },	   { S_IFLNK, "a symbolic link" },
		{ S_IFSOCK, "a socket" },
	};
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if ((mode & S_IFMT) == names[i].type)
			return names[i].name;
	return "something unknown";
}

/* True when it is the same kind of thing; else the difference is in the report. */
static bool same_type(const Cpr__NeededFile *file, const struct stat *st, struct report *r)
{
	char text[512];
	if (file->has_mode && (file->mode & S_IFMT) != (st->st_mode & S_IFMT)) {
		snprintf(text, sizeof(text), "%.300s is %s here and %s on the source", file->path,
			 type_name(st->st_mode), type_name(file->mode));
		add(r, REPORT_BLOCKER, FAULT_FILE_DIFFERS, file, "make the same kind of file on the destination", text);
		return false;
	}
	if (file->has_rdev && file->rdev != st->st_rdev) {
		snprintf(text, sizeof(text), "%.300s is device %u:%u here and %u:%u on the source", file->path,
			 major(st->st_rdev), minor(st->st_rdev), major(file->rdev), minor(file->rdev));
		add(r, REPORT_BLOCKER, FAULT_FILE_DIFFERS, file, "make the same device node on the destination", text);
		return false;
	}
	return true;
}

static bool same_size(const Cpr__NeededFile *file, const struct stat *st, struct report *r)
{
	uint64_t here = (uint64_t)st->st_size;
	char text[512];
	if (here == file->size || (file->size_may_grow && here > file->size && !file->append_only))
		return true;
	snprintf(text, sizeof(text), "%.300s is %llu bytes here and %llu on the source", file->path,
		 (unsigned long long)here, (unsigned long long)file->size);
	if (file->append_only) {
		size_t len = strlen(text);
		snprintf(text + len, sizeof(text) - len, ": it is only appended to, here from now on");
		add(r, REPORT_LOSS, FAULT_FILE_DIFFERS, file, "copy what was written so far, if it matters", text);
		return true;
	}
	add(r, REPORT_BLOCKER, FAULT_FILE_DIFFERS, file,
	    file->has_digest ? "install the same version of the file on the destination"
			     : "copy the file, or put it on storage that both hosts see",
	    text);
	return false;
}

static void compare_content(const Cpr__NeededFile *file, struct report *r)
{
	uint8_t digest[DIGEST_LEN];
	char text[512];
	struct fault why;
	auto_fd fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 || filetab_digest(fd, digest, &why) < 0) {
		snprintf(text, sizeof(text), "%.300s can't be read here: %s", file->path, strerror(errno));
		add(r, REPORT_BLOCKER, FAULT_FILE_DIFFERS, file, NULL, text);
	} else if (memcmp(digest, file->digest.data, DIGEST_LEN)) {
		snprintf(text, sizeof(text), "%.300s has another content here than on the source", file->path);
		add(r, REPORT_BLOCKER, FAULT_FILE_DIFFERS, file,
		    "install the same version of the file on the destination", text);
	}
}

static void check_file(const Cpr__NeededFile *file, struct report *r)
{
	struct stat st;
	char text[512];
	bool link = file->has_mode && S_ISLNK(file->mode);
	if (file->path[0] != '/' || fstatat(AT_FDCWD, file->path, &st, link ? AT_SYMLINK_NOFOLLOW : 0) < 0) {
		snprintf(text, sizeof(text), "%.300s is not on the destination: %s", file->path, strerror(errno));
		add(r, REPORT_BLOCKER, FAULT_FILE_MISSING, file, "install or copy it to the same path there", text);
		return;
	}
	if (!same_type(file, &st, r) || !S_ISREG(st.st_mode) || !same_size(file, &st, r))
		return;
	if (file->has_digest && file->digest.len == DIGEST_LEN && (uint64_t)st.st_size == file->size)
		compare_content(file, r);
}

static void check_address(const Cpr__NeededAddress *n, struct report *r)
{
	uint8_t addr[16];
	int family = strchr(n->address, ':') ? AF_INET6 : AF_INET;
	const char *object = n->object && *n->object ? n->object : n->address;
	if (inet_pton(family, n->address, addr) != 1) {
		report_add(r, REPORT_BLOCKER, FAULT_PROTOCOL, object, NULL, "\"%.60s\" is not an address", n->address);
		return;
	}
	if (n->moves || net_address_is_local(family, addr))
		return;
	report_add(r, REPORT_BLOCKER, FAULT_NO_ADDRESS, object,
		   "let the address move along with --move-address, or add it on the destination first",
		   "its address %s is not an address of the destination", n->address);
}

int files_check_target(const Cpr__Offer *offer, struct report *report, struct fault *f)
{
	(void)f;
	for (size_t i = 0; i < offer->n_files; i++)
		check_file(offer->files[i], report);
	for (size_t i = 0; i < offer->n_addresses; i++)
		check_address(offer->addresses[i], report);
	return 0;
}
