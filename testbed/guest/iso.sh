#!/bin/bash
# Builds an installer of the test guest: a bootable CD-ROM that writes a bootable disk, and that disk by itself.
#
# usage: iso.sh DIRECTORY
#
# DIRECTORY is where build.sh has built the guest. Writes disk.img and installer.iso there. Nothing is installed, root is
# not needed, and what is there already is not built again. The same guest and packages give the same bytes.
# Needs: apt-get with package lists, dpkg-deb, and genisoimage.
set -euo pipefail

out=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
recipe=$(cat "$here/iso.sh" "$out/recipe" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/iso-recipe" 2>/dev/null)" = "$recipe" ]; then exit 0; fi

for tool in apt-get dpkg-deb genisoimage; do
    command -v "$tool" >/dev/null || { echo "iso.sh: $tool is missing: apt-get install genisoimage" >&2; exit 1; }
done

work=$out/work
rm -rf "$work/boot" "$work/cd"
mkdir -p "$work/debs" "$work/boot" "$work/cd/isolinux"
for package in isolinux syslinux-common syslinux mtools dosfstools; do
    ls "$work/debs/$package"_*.deb >/dev/null 2>&1 || (cd "$work/debs" && apt-get -qq download "$package")
    dpkg-deb -x "$work/debs/$package"_*.deb "$work/boot"
done
export PATH=$work/boot/usr/bin:$work/boot/sbin:$work/boot/usr/sbin:$PATH SOURCE_DATE_EPOCH=1700000000 TZ=UTC
# What a file system notes of its making.
export MTOOLS_SKIP_CHECK=1

gzip -9 -n <"$out/initrd.img" >"$work/initrd.gz"
common="console=tty0 console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"

# One label, which boots at once.
menu() { printf 'DEFAULT guest\nPROMPT 0\nLABEL guest\n  LINUX %s\n  INITRD %s\n  APPEND %s %s\n' "$1" "$2" "$common" "$3"; }

# The disk: a FAT file system from the first sector on, with SYSLINUX in its boot sector.
rm -f "$out/disk.img"
truncate -s 32M "$out/disk.img"
mkfs.fat -F 16 -i 56495254 -n GUEST --invariant -g 64/32 "$out/disk.img" >/dev/null
menu vmlinuz initrd.gz vm.name=installed >"$work/syslinux.cfg"
touch -d "@$SOURCE_DATE_EPOCH" "$work/syslinux.cfg" "$work/initrd.gz" "$out/vmlinuz"
mcopy -m -i "$out/disk.img" "$out/vmlinuz" ::vmlinuz
mcopy -m -i "$out/disk.img" "$work/initrd.gz" ::initrd.gz
mcopy -m -i "$out/disk.img" "$work/syslinux.cfg" ::syslinux.cfg
syslinux --install "$out/disk.img"

# The CD-ROM: the same guest, told to write the disk.
cp "$work/boot/usr/lib/ISOLINUX/isolinux.bin" "$work/boot/usr/lib/syslinux/modules/bios/ldlinux.c32" "$work/cd/isolinux/"
menu /vmlinuz /initrd.gz vm.install=/disk.img >"$work/cd/isolinux/isolinux.cfg"
cp "$out/vmlinuz" "$work/initrd.gz" "$out/disk.img" "$work/cd/"
find "$work/cd" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
genisoimage -quiet -J -R -V INSTALLER -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 \
    -boot-info-table -o "$out/installer.iso" "$work/cd"
rm -rf "$work/boot" "$work/cd" "$work/initrd.gz" "$work/syslinux.cfg"
echo "$recipe" >"$out/iso-recipe"
