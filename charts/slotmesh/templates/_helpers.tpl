{{/*
Labels. Each takes (dict "root" $ "component" "agent"). The names of the release's objects are fixed: a
cluster has one slotmesh, as it has one set of CRDs.
*/}}

{{/* Labels that tell a component's pods; they must not change in an upgrade. */}}
{{- define "slotmesh.selector" -}}
app.kubernetes.io/name: slotmesh
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "slotmesh.labels" -}}
{{ include "slotmesh.selector" . }}
app.kubernetes.io/part-of: slotmesh
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* The image of a component. */}}
{{- define "slotmesh.image" -}}
{{ .root.Values.image.repository }}/{{ .component }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "slotmesh.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What makes an object a hook that goes when it has done its work. Takes (dict "on" "test" "weight" "0"). */}}
{{- define "slotmesh.hook" -}}
helm.sh/hook: {{ .on }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* The spec of a hook's pod, up to what its one container is told. It runs where the operator may. */}}
{{- define "slotmesh.hookPod" -}}
serviceAccountName: slotmesh-{{ .component }}
automountServiceAccountToken: true
enableServiceLinks: false
{{- include "slotmesh.pullSecrets" .root | nindent 0 }}
{{- with .root.Values.operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: { type: RuntimeDefault }
containers:
  - name: {{ .component }}
    image: {{ include "slotmesh.image" (dict "root" .root "component" "operator") }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: { drop: [ALL] }
{{- end }}
