#!/bin/bash
# Builds the test guest from Debian packages: a kernel, an initramfs with busybox and dropbear, and a key to log in with.
#
# usage: build.sh DIRECTORY
#
# Writes vmlinuz, initrd.img, id_ed25519 and id_ed25519.pub. Nothing is installed, root is not needed, and what is
# there already is not built again: remove the directory for that. The same packages and keys give the same bytes.
# Needs: apt-get with package lists, dpkg-deb, cpio, and dropbearkey and dropbearconvert (dropbear-bin).
set -euo pipefail

out=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
recipe=$(cat "$here/build.sh" "$here/init" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/recipe" 2>/dev/null)" = "$recipe" ]; then exit 0; fi

for tool in apt-get dpkg-deb cpio dropbearkey; do
    command -v "$tool" >/dev/null || { echo "build.sh: $tool is missing: apt-get install cpio dropbear-bin" >&2; exit 1; }
done
convert=$(command -v dropbearconvert || echo /usr/lib/dropbear/dropbearconvert)

work=$out/work
rm -rf "$work/packages" "$work/root"
mkdir -p "$work/debs" "$work/packages" "$work/root"

kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/{print $2; exit}')
[ -n "$kernel" ] || { echo "build.sh: apt knows no linux-image-cloud-amd64: run apt-get update" >&2; exit 1; }
libraries="libtomcrypt1 libtommath1 libgmp10 libcrypt1 libc6 zlib1g"
for package in $kernel busybox-static dropbear-bin $libraries; do
    ls "$work/debs/$package"_*.deb >/dev/null 2>&1 || (cd "$work/debs" && apt-get -qq download "$package")
    dpkg-deb -x "$work/debs/$package"_*.deb "$work/packages"
done

cd "$work/packages"
release=$(ls lib/modules)
cp "boot/vmlinuz-$release" "$out/vmlinuz"

root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,etc/dropbear,etc/acpi/PWRF,root/.ssh,tmp,run,modules,lib/x86_64-linux-gnu,lib64}
cp bin/busybox "$root/bin/"
for applet in $(./bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
cp usr/sbin/dropbear "$root/bin/"
for library in libtomcrypt.so.1 libtommath.so.1 libgmp.so.10 libcrypt.so.1 libz.so.1 libc.so.6 libnss_files.so.2; do
    cp -L "$(find . -name "$library" | head -1)" "$root/lib/x86_64-linux-gnu/$library"
done
cp -L "$(find . -name ld-linux-x86-64.so.2 | head -1)" "$root/lib64/"

# In the order in which they need each other.
number=10
for module in drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev \
    drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci net/core/failover drivers/net/net_failover \
    drivers/net/virtio_net drivers/block/virtio_blk drivers/scsi/scsi_common drivers/scsi/scsi_mod \
    drivers/scsi/virtio_scsi drivers/cdrom/cdrom drivers/scsi/sr_mod fs/isofs/isofs drivers/acpi/button drivers/input/evdev; do
    cp "lib/modules/$release/kernel/$module.ko" "$root/modules/$number-$(basename "$module").ko"
    number=$((number + 1))
done

[ -f "$out/id_dropbear" ] || dropbearkey -t ed25519 -f "$out/id_dropbear" >/dev/null 2>&1
[ -f "$out/host_key" ] || dropbearkey -t ed25519 -f "$out/host_key" >/dev/null 2>&1
dropbearkey -y -f "$out/id_dropbear" | grep '^ssh-' >"$out/id_ed25519.pub"
rm -f "$out/id_ed25519"
"$convert" dropbear openssh "$out/id_dropbear" "$out/id_ed25519" 2>/dev/null
chmod 600 "$out/id_ed25519"
cp "$out/host_key" "$root/etc/dropbear/dropbear_ed25519_host_key"
cp "$out/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
echo 'root::0:0:99999:7:::' >"$root/etc/shadow"
echo root:x:0: >"$root/etc/group"
echo /bin/sh >"$root/etc/shells"
install -m 755 "$here/init" "$root/init"
printf '#!/bin/sh\nexec poweroff -f\n' >"$root/etc/acpi/PWRF/00000080"
chmod 755 "$root/etc/acpi/PWRF/00000080"
chmod 700 "$root/root" "$root/root/.ssh"
chmod 600 "$root/root/.ssh/authorized_keys" "$root/etc/dropbear/dropbear_ed25519_host_key"

cd "$root"
find . -exec touch -h -d @1700000000 {} +
find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R 0:0 >"$out/initrd.img"
rm -rf "$work/packages" "$work/root"
echo "$recipe" >"$out/recipe"
